"""The image tasks, CIFAR-10 and CIFAR-100; torch-free."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

#: Suffixes of image files.
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """Classification of square colour images.

    CIFAR has no development split.

    Attributes:
        name: The name of the task.
        label_names: Class names in the order of their ids.
        hub: The data set on the Hugging Face hub.
        label_column: The column of the label.
        mean: Mean of red, green and blue over the training split, as fractions of the brightest value.
        std: Their standard deviations.
        image_column: The column of the encoded image.
        size: Width and height in pixels.
        metric: The name of the metric.
        splits: The splits.
        eval_splits: Labelled splits for evaluation.
        group_by: (): each image is a group; CIFAR-10's 50,000 training images are all different.
    """

    name: str
    label_names: tuple[str, ...]
    hub: str
    label_column: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_column: str = "img"
    size: int = 32
    metric: Literal["accuracy"] = "accuracy"
    splits: tuple[str, ...] = ("train", "test")
    eval_splits: tuple[str, ...] = ("test",)
    group_by: tuple[()] = ()
    kind: ClassVar[str] = "images"  # in leebert.kinds.KINDS


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)

#: Label ids in the order of the data sets' own.
IMAGE_TASKS: dict[str, ImageTask] = {
    task.name: task
    for task in (
        ImageTask(
            name="cifar10",
            label_names=tuple(_CIFAR10.split()),
            hub="uoft-cs/cifar10",
            label_column="label",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        ImageTask(
            name="cifar100",
            label_names=tuple(_CIFAR100.split()),
            hub="uoft-cs/cifar100",
            label_column="fine_label",
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
        ),
    )
}
