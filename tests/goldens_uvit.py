"""U-ViT: its fixtures of the official code, and its published parameter counts."""

NETWORKS = ["uvit_uncond_a", "uvit_class_notimemlp_a", "uvit_class_timemlp_a", "uvit_t2i_a"]

# Parameter counts of the official code (facts): name -> count
PARAMETERS = {
    "uvit_cifar10": 44_255_328, "uvit_celeba64": 44_292_228, "uvit_imagenet64_m": 130_940_292,
    "uvit_imagenet64_l": 286_827_652, "uvit_imagenet256_l": 286_763_172, "uvit_imagenet256_h": 500_832_016,
    "uvit_imagenet512_l": 286_861_524, "uvit_imagenet512_h": 500_942_656, "uvit_coco": 44_692_644,
    "uvit_coco_deep": 58_345_636,
}  # fmt: skip
