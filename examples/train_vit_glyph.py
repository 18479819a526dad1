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
# Left out by eye, beside what `glyphs` finds to overlap with a digit.
LIKE_A_DIGIT = "OoIl|¡¦°ǀƖƗƧƨϨϩƷȜȝƼƽƻЭЧчͻͽՅջვჳ\u2218\u2223"
OMNIGLOT_LIKE_A_DIGIT = {
    *(f"Latin/character{i:02d}" for i in (9, 12, 15)),  # i, l, o
    *(f"Greek/character{i:02d}" for i in (9, 15)),  # iota, omicron
    *(f"Korean/character{i:02d}" for i in (19, 21, 22, 33)),  # a bar, a bar, a 7, a circle
}
HELD_OUT_ALPHABET = "Early_Aramaic"


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
        images = [fit(ImageOps.invert(Image.open(file).convert("L"))) for file in files]
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


def augment(images: Tensor) -> Tensor:
    """Turn stored glyphs into network input: ``(B, SIDE, SIDE)`` uint8 to ``(B, 3, 32, 32)``.

    Stroke width, affine and elastic distortion, resolution (down to 8 x 8), contrast, polarity,
    tint and noise are random.
    """
    n = len(images)
    x = images[:, None].float() / 255
    pick = torch.randint(4, (n, 1, 1, 1))  # thicker, thinner where ink is left, as it is (twice)
    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    keeps_ink = thin.amax((2, 3), keepdim=True) > 0.5
    x = torch.where(pick == 0, thick, torch.where((pick == 1) & keeps_ink, thin, x))
    angle, shear = uniform(-0.3, 0.3, n), uniform(-0.3, 0.3, n)
    zoom_x, zoom_y = uniform(0.8, 1.4, n), uniform(0.8, 1.2, n)  # above 1 the glyph shrinks
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([zoom_x * cos, zoom_x * (shear - sin), uniform(-0.15, 0.15, n)], 1),
            torch.stack([zoom_y * sin, zoom_y * cos, uniform(-0.1, 0.1, n)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    bend = F.interpolate(0.1 * torch.randn(n, 2, 4, 4), (32, 32), mode="bicubic")
    x = F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), align_corners=False)
    coarse = []
    for part, side in zip(x.tensor_split(4), (8, 12, 18, 32), strict=True):
        small = F.interpolate(part, (side, side), mode="area")
        coarse.append(F.interpolate(small, (32, 32), mode="bicubic"))
    x = torch.cat(coarse).clamp(0, 1)
    x = x / x.amax((2, 3), keepdim=True).clamp(min=0.1)
    x = x ** torch.exp(uniform(-0.5, 0.5, n, 1, 1, 1))
    dark, bright = uniform(0, 0.3, n, 1, 1, 1), uniform(0.6, 1, n, 1, 1, 1)
    tint = 0.1 * torch.randn(n, 3, 1, 1) * (torch.rand(n, 1, 1, 1) < 0.5)
    x = dark + (bright - dark + tint) * x  # (n, 3, 32, 32)
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.4, 1 - x, x)
    x = x + torch.randn_like(x) * uniform(0, 0.08, n, 1, 1, 1)
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


def main() -> None:
    """Train, report the held-out accuracy, write the weights as float16."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", type=Path, help="folder <alphabet>/train/<character>/*.png")
    parser.add_argument("--output", type=Path, default=Path("vit_glyph.safetensors"))
    parser.add_argument("--steps", type=int, default=2800)
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

    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, patch_drop_rate=0.5, **shape)
    head = nn.Parameter(torch.randn(len(train), 96))
    print(f"held-out accuracy at random: {held_out_accuracy(vit.eval(), held_out):.3f}", flush=True)
    matrices = [p for p in [*vit.parameters(), head] if p.ndim > 1]
    vectors = [p for p in vit.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    start = time.perf_counter()
    for step in range(args.steps):
        done = step / args.steps
        vit.patch_drop.prob = 0.5 if done < 0.75 else 0.0  # half the patches, half the time
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 200) * (1 + math.cos(math.pi * done)) / 2
        batch = torch.randint(len(images), (128,))
        with torch.autocast("cpu", torch.bfloat16):
            features = vit.train()(augment(images[batch])).float()
        cosine = F.normalize(features, dim=1) @ F.normalize(head, dim=1).T  # (B, C)
        loss = F.cross_entropy(16 * cosine, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*vit.parameters(), head], 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            accuracy = held_out_accuracy(vit.eval(), held_out)
            seconds = time.perf_counter() - start
            told = f"loss {loss:.3f}, held-out accuracy {accuracy:.3f}"
            print(f"step {step + 1}, {seconds:.0f} s: {told}", flush=True)
    weights = {name: value.half().contiguous() for name, value in vit.state_dict().items()}
    save_file(weights, args.output, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
