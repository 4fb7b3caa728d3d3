"""What happens between two batches: schedule, forward and backward pass, update, agreement of the ranks."""
