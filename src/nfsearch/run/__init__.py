"""One search: what a config asks for (plan), carrying it out, and the records that its folder keeps."""
