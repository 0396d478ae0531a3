"""How far those who review can be relied on: figures about them, and the gold items that some of these rest on."""
