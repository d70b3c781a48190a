"""The method: losses, the joint step, the meta-parameters of level 3 and their hypergradient."""
