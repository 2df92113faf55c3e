"""STGConvNet, an energy model of video: "Synthesizing Dynamic Patterns" (CVPR 2017)."""
