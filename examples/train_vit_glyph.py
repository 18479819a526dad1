"""Train the bundled small ViT (`vit_glyph`) from nothing on letters and symbols.

The images are glyphs of the fonts that matplotlib ships (DejaVu, STIX) and, with ``--omniglot``,
the handwritten characters of Omniglot. No class is a digit. About 15 minutes on one CPU core:

    python examples/train_vit_glyph.py --omniglot ../shared/data/omniglot

One Omniglot alphabet and every tenth glyph never train; nearest class mean on them is the number
to choose the recipe by.
"""

import argparse
import math
import time
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 48  # pixels of a stored glyph; the network sees 32
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
TEXT_FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
RANGES = (  # Latin, Greek, Cyrillic, Armenian, Georgian, arrows, operators; without digits
    *((0x21, 0x7E), (0xA1, 0xFF), (0x180, 0x24F), (0x370, 0x3FF), (0x400, 0x45F)),
    *((0x531, 0x556), (0x561, 0x587), (0x10D0, 0x10F6), (0x2190, 0x2199), (0x2200, 0x2240)),
)
CATEGORIES = {"Lu", "Ll", "Lo", "Sm", "Sc", "So", "Po"}  # leaves out Nd, Nl, No: every numeral
# Left out by eye, beside what `glyphs` finds to overlap with a digit. The second line, by code:
# Greek, Cyrillic, Armenian and slashed O, Greek and Cyrillic I, roots that carry a digit, ...
LIKE_A_DIGIT = "OoIl|¡¦°'ǀƖƗƧƨϨϩƷȜȝƼƽƻЭЧчͻͽՅՁջվვჳϬϭ϶Ͻ"
LIKE_A_DIGIT += (
    "\u039f\u03bf\u041e\u043e\u0399\u0406\u221b\u221c\u0555\u0585\xd8\xf8\u2205\u044d\u2218\u2223"
)
OMNIGLOT_LIKE_A_DIGIT = {
    *(f"Latin/character{i:02d}" for i in (9, 12, 15)),  # i, l, o
    *(f"Greek/character{i:02d}" for i in (9, 15)),  # iota, omicron
    *(f"Korean/character{i:02d}" for i in (19, 21, 22, 33)),  # a bar, a bar, a 7, a circle
}
HELD_OUT_ALPHABET = "Early_Aramaic"
LR = 2e-3


def fit(image: Image.Image) -> np.ndarray:
    """Crop bright strokes to their box and centre them on a square: ``(SIDE, SIDE)`` uint8."""
    image = ImageOps.pad(image.crop(image.getbbox()), (SIDE - 8, SIDE - 8))
    return np.asarray(ImageOps.expand(image, 4))


def render(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """Draw a character; None if it has no ink."""
    left, top, right, bottom = font.getbbox(character)
    if right - left < 1 or bottom - top < 1:
        return None
    image = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), character, font=font, fill=255)
    return fit(image) if image.getbbox() else None


def signature(image: np.ndarray) -> np.ndarray:
    """Return a coarse unit vector of the ink; the dot product of two is their overlap."""
    small = np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BOX), dtype=float)
    return small.ravel() / np.linalg.norm(small)


def glyphs() -> list[list[np.ndarray]]:
    """Return the font classes, each a list of images, one a font.

    A character is left out if in DejaVu Sans it overlaps with a digit by more than 0.85, or with
    an earlier character (the same letter of another script or case) by more than 0.96.
    """
    reference = ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), 64)
    drawn = FT2Font(str(FONTS / "DejaVuSans.ttf")).get_charmap()
    digits = np.stack([signature(render(reference, digit)) for digit in "0123456789"])
    seen: list[np.ndarray] = []
    characters = []
    codes = [code for first, last in RANGES for code in range(first, last + 1)]
    for character in (chr(code) for code in codes if code in drawn):
        if unicodedata.category(character) not in CATEGORIES or character in LIKE_A_DIGIT:
            continue
        if unicodedata.decomposition(character) or (image := render(reference, character)) is None:
            continue
        own = signature(image)
        if (digits @ own).max() <= 0.85 and (not seen or (np.stack(seen) @ own).max() <= 0.96):
            seen.append(own)
            characters.append(character)
    classes: list[list[np.ndarray]] = [[] for _ in characters]
    paths = [p for p in sorted(FONTS.glob("*.ttf")) if "Display" not in p.stem]
    for path in (p for p in paths if p.stem.split("-")[0].startswith(TEXT_FONTS)):
        has = FT2Font(str(path)).get_charmap()
        font = ImageFont.truetype(str(path), 64)
        for images, character in zip(classes, characters, strict=True):
            if ord(character) in has and (image := render(font, character)) is not None:
                images.append(image)
    return classes


def omniglot(root: Path) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """Return training classes (four rotations of each character) and the held-out alphabet's.

    Args:
        root: Folder ``<alphabet>/train/<character>/*.png``, dark strokes on white.
    """
    train, held_out = [], []
    for folder in sorted(root.glob("*/train/*")):
        alphabet = folder.parent.parent.name
        if f"{alphabet}/{folder.name}" in OMNIGLOT_LIKE_A_DIGIT:
            continue
        files = sorted(folder.glob("*.png"))
        images = [
            fit(ImageOps.invert(Image.open(file, formats=("PNG",)).convert("L"))) for file in files
        ]
        if alphabet == HELD_OUT_ALPHABET:
            held_out.append(images)
        else:
            train += [[np.rot90(image, turn) for image in images] for turn in range(4)]
    return train, held_out


def stack(classes: list[list[np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Return all images ``(n, SIDE, SIDE)`` uint8 and their class numbers ``(n,)``."""
    labels = [label for label, images in enumerate(classes) for _ in images]
    return torch.from_numpy(
        np.stack([image for images in classes for image in images])
    ), torch.tensor(labels)


def uniform(low: float, high: float, *shape: int) -> Tensor:
    """Draw from [low, high)."""
    return torch.empty(*shape).uniform_(low, high)


def augment(images: Tensor, strength: float = 1.0) -> Tensor:
    """Turn stored glyphs into network input: ``(B, SIDE, SIDE)`` uint8 to ``(B, 3, 32, 32)``.

    Stroke width, affine and elastic distortion, resolution (down to 8 x 8), contrast, polarity,
    tint and noise are random; ``strength`` in [0, 1] scales how much and how often.
    """
    n = len(images)

    def some(share: float) -> Tensor:
        return torch.rand(n, 1, 1, 1) < share * strength

    x = images[:, None].float() / 255
    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    x = torch.where(some(0.25) & (thin.amax((2, 3), keepdim=True) > 0.5), thin, x)
    x = torch.where(some(0.25), thick, x)
    angle, shear = strength * uniform(-0.3, 0.3, n), strength * uniform(-0.3, 0.3, n)
    zoom_x = 1 + strength * uniform(-0.15, 0.4, n)  # above 1 the glyph shrinks
    zoom_y = 1 + strength * uniform(-0.15, 0.2, n)
    shift_x, shift_y = strength * uniform(-0.12, 0.12, n), strength * uniform(-0.08, 0.08, n)
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([zoom_x * cos, zoom_x * (shear - sin), shift_x], 1)
    row_y = torch.stack([zoom_y * sin, zoom_y * cos, shift_y], 1)
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), [n, 1, 32, 32], align_corners=False)
    bend = F.interpolate(0.08 * strength * torch.randn(n, 2, 4, 4), (32, 32), mode="bicubic")
    x = F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), align_corners=False)
    for side in (8, 12, 18):
        small = F.interpolate(x, (side, side), mode="area")
        x = torch.where(some(0.25), F.interpolate(small, (32, 32), mode="bicubic"), x)
    x = x.clamp(0, 1)
    x = x / x.amax((2, 3), keepdim=True).clamp(min=0.1)
    x = x ** torch.exp(strength * uniform(-0.5, 0.5, n, 1, 1, 1))
    dark, bright = uniform(0, 0.2, n, 1, 1, 1), uniform(-0.3, 0, n, 1, 1, 1)
    tint = 0.1 * torch.randn(n, 3, 1, 1) * some(0.5)
    x = strength * dark + (1 + strength * (bright - dark) + tint) * x  # (n, 3, 32, 32)
    x = torch.where(some(0.4), 1 - x, x)
    x = x + torch.randn_like(x) * strength * uniform(0, 0.06, n, 1, 1, 1)
    return (x.clamp(0, 1) - 0.5) / 0.5


@torch.no_grad()
def held_out_accuracy(vit: nn.Module, classes: list[list[np.ndarray]]) -> float:
    """Nearest class mean (cosine): even images make the means, odd ones are classified."""
    images, labels = stack(classes)
    order = torch.randperm(len(images))  # so that the resolution does not depend on the class
    inputs = torch.empty(len(images), 3, 32, 32)
    inputs[order] = augment(images[order])
    features = F.normalize(torch.cat([vit(part) for part in inputs.split(256)]), dim=1)
    even = torch.arange(len(labels)) % 2 == 0
    means = torch.stack([features[even & (labels == c)].mean(0) for c in labels.unique()])
    guess = (features[~even] @ F.normalize(means, dim=1).T).argmax(1)
    return (guess == labels[~even]).double().mean().item()


@torch.no_grad()
def fold(norm: nn.LayerNorm, scale: nn.BatchNorm1d) -> None:
    """Put the standardisation of the features into the layer norm before it."""
    deviation = (scale.running_var + scale.eps).sqrt()
    norm.bias.copy_((norm.bias - scale.running_mean) / deviation)
    norm.weight.div_(deviation)


def main() -> None:
    """Train, report the held-out accuracy, write the weights as float16."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", type=Path, help="folder <alphabet>/train/<character>/*.png")
    parser.add_argument("--output", type=Path, default=Path("vit_glyph.safetensors"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)

    fonts = glyphs()
    held_out = fonts[::10]
    train = [images for i, images in enumerate(fonts) if i % 10]
    if args.omniglot:
        characters, alphabet = omniglot(args.omniglot)
        train, held_out = train + characters, held_out + alphabet
    images, labels = stack(train)
    print(f"{len(images)} images of {len(train)} classes, {len(held_out)} classes held out")

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape)
    scale = nn.BatchNorm1d(96, affine=False)  # without it all features start, and stay, alike
    features = nn.Sequential(vit, scale)
    head = nn.Linear(96, len(train))
    print(f"held-out accuracy at random: {held_out_accuracy(vit.eval(), held_out):.3f}", flush=True)
    parameters = [*vit.parameters(), *head.parameters()]
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    start = time.perf_counter()
    for step in range(args.steps):
        done = step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * done)) / 2
        batch = torch.randint(len(images), (128,))
        inputs = augment(images[batch], min(1.0, done / 0.6))  # from the plain glyphs upwards
        loss = F.cross_entropy(head(features.train()(inputs)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            accuracy = held_out_accuracy(features.eval(), held_out)
            told = f"loss {loss:.3f}, held-out accuracy {accuracy:.3f}"
            print(f"step {step + 1}, {time.perf_counter() - start:.0f} s: {told}", flush=True)
    fold(vit.norm, scale)
    weights = {name: value.half().contiguous() for name, value in vit.state_dict().items()}
    save_file(weights, args.output, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
