"""Language models behind one small protocol, and how dialogue becomes tokens."""
