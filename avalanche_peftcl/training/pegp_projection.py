"""The projection of PEGP, by its recipe."""

from dataclasses import replace
from typing import Any, Literal

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import PEFTModel
from avalanche_peftcl.models.projection.sites import ProjectionSite, projection_sites
from avalanche_peftcl.training.plugins import GradientProjectionPlugin, ReleasedProjectionPlugin
from avalanche_peftcl.training.plugins.gradient_projection import Where
from avalanche_peftcl.training.plugins.projection_rules import Rule
from avalanche_peftcl.training.plugins.released_projection import released_sites

Recipe = Literal["corrected", "released"]


def make_projection(
    model: PEFTModel,
    *,
    recipe: Recipe,
    projection: bool,
    threshold: float,
    rule: Rule,
    centred: bool,
    kept: float,
    strength: float,
    where: Where | None,
    n_samples: int | None,
    watch: int,
    project_head: bool,
) -> GradientProjectionPlugin | None:
    """Return the plugin that projects, with the arguments of :class:`.PEGP`; none if switched off.

    Raises:
        ConfigError: If an argument is out of range or does not fit the recipe, or the model has no
            site that the recipe projects.
    """
    if recipe not in ("corrected", "released"):
        raise ConfigError(f"recipe must be corrected or released, not {recipe!r}")
    if recipe == "released" and (where == "step" or project_head):
        raise ConfigError(
            'recipe="released" projects gradients, and of modules alone; leave out '
            'where="step" and project_head=True, or take recipe="corrected"'
        )
    if recipe == "released" and (rule != "energy" or centred or strength != 1):
        raise ConfigError(
            'recipe="released" removes the whole component along a mask of coordinates; leave '
            f"out rule={rule!r}, centred={centred} and strength={strength}, or take "
            'recipe="corrected"'
        )
    if recipe == "released" and projection and model.branch.text is not None:
        raise ConfigError(
            'recipe="released" projects what is in the image tower, and the module is in the text '
            'tower too; take recipe="corrected", or tower: image'
        )
    if watch and not projection:
        raise ConfigError(
            f"watch={watch} measures beside the projection, which is switched off; for none "
            "that acts take strength=0"
        )
    if project_head and not list(model.head.head_sites()):
        raise ConfigError(
            f"project_head=True, but a {type(model.head).__name__} states no head_sites(); "
            "leave it out, or take a linear head"
        )
    if not projection:
        return None
    if not projection_sites(model):
        raise ConfigError(
            f"PEGP has nothing to project: no module of this {type(model).__name__} states "
            "projection sites; give model= one with adapters, LoRA, prefixes or prompts, or "
            "projection=False"
        )
    if recipe == "released":
        released_sites(model)
        return ReleasedProjectionPlugin(threshold, n_samples=n_samples, watch=watch)
    return GradientProjectionPlugin(
        threshold,
        rule=rule,
        centred=centred,
        kept=kept,
        strength=strength,
        where=where or "step",
        n_samples=n_samples,
        watch=watch,
        sites=_sites_with_head if project_head else projection_sites,
    )


def _sites_with_head(model: Any) -> list[ProjectionSite]:
    head = [replace(site, name=f"head.{site.name}") for site in model.head.head_sites()]
    return projection_sites(model) + head
