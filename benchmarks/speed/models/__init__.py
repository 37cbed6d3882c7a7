"""The torch modules that are timed, one file for each family: plain `nn.Module`s as people write them."""
