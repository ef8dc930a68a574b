"""What training does to the weights: measured, kept, drawn."""
