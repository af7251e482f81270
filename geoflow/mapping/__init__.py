"""Maps: prediction, change between two maps, and how good they are."""
