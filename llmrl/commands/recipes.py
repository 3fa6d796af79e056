"""Commands about recipes: those that come with llmrl, and their schema."""

from __future__ import annotations

from rich.console import Console

console = Console(soft_wrap=True)


def recipes() -> None:
    """List the recipes that come with llmrl."""
    import yaml
    from rich.table import Table

    from llmrl.settings.load import recipes_folder

    table = Table()
    table.add_column("recipe", no_wrap=True)  # it is typed as it stands here
    table.add_column("what it does")
    for file in sorted(recipes_folder().rglob("*.yaml")):
        name = file.relative_to(recipes_folder().parent)
        table.add_row(str(name), str(yaml.safe_load(file.read_text()).get("description", "")))
    console.print(table)
    console.print(f"(in {recipes_folder().resolve()})", highlight=False)


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from llmrl.settings.load import recipe_schema

    print(recipe_schema())
