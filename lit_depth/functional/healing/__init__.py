"""Give a model without some of its blocks back what it lost: weights of the blocks that are left, fitted anew."""
