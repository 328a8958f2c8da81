"""Every request on the record: what is noted of it on either way that it can take, and when its answer may go out."""
