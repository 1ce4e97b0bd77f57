"""What every part of nfsearch may use, and what itself uses none of them. No torch here."""
