from .cached import CACHE, CachedPrompts, cached_prompts
from .card import CARD_KEY, PromptCard, read_card
from .choose_offers import ChosenOffers, choose_offers
from .declared import declared_info, imagenet_classes
from .reader import PromptReader
from .runnable import network_of_builder, network_of_graph, network_of_module
from .seen_classes import SeenClasses, class_notes, seen_classes
from .untrained import untrained_notes
from .wider_network import run_as_wider

__all__ = [
    "CACHE",
    "CARD_KEY",
    "CachedPrompts",
    "ChosenOffers",
    "PromptCard",
    "PromptReader",
    "SeenClasses",
    "cached_prompts",
    "choose_offers",
    "class_notes",
    "declared_info",
    "imagenet_classes",
    "network_of_builder",
    "network_of_graph",
    "network_of_module",
    "read_card",
    "run_as_wider",
    "seen_classes",
    "untrained_notes",
]
