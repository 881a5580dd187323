"""What the families on a plain ResNet share."""

RESNET50_PARAMETERS = 23_508_032
RESNET_NANO = dict(layers=(1, 1, 1, 1), channels=(16, 32, 64, 128))
