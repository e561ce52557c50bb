"""What runs on an executor: Arrow arrays in, Arrow arrays out, the model in between."""
