"""One experiment each: tables in, tables out."""
