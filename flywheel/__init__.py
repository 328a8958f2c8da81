"""What happens after the answer: the record of each request, and the log that loses none."""
