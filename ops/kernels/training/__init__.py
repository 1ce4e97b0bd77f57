"""Forward and backward of the parallel forms: chunked recurrences and what surrounds them."""
