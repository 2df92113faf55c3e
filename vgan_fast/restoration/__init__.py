"""Videos with occluded pixels made whole: the masks, and the recovery of what they hide."""
