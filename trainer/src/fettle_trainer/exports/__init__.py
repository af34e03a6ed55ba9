"""Models for use elsewhere: written beside their place, compared in a fresh process, then moved there."""
