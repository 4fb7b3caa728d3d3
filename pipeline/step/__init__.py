"""What happens between two batches: schedule, forward and backward pass, agreement of the ranks, update."""
