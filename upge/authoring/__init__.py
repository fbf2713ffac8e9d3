"""What `upge new` writes: a recipe like another one, and a package with a part."""
