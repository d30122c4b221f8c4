"""Which sizes of the dynamic axes the graph answers for as the network does."""
