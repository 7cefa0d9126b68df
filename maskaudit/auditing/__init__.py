"""The main job: draw points, measure, attack, judge."""
