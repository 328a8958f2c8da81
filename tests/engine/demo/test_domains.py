import re
from itertools import islice

import pytest

from engine.demo import domains
from engine.demo.conversations import conversations
from engine.demo.names import Split


def words(domain_list: tuple[domains.Domain, ...], split: Split, seed: int, chats: int) -> set[str]:
    stream = islice(conversations(split, seed, domains=domain_list), chats)
    return {word for chat in stream for m in chat.messages for word in re.findall(r"[a-z]+", m["content"].lower())}


def test_six_domains_are_trained_and_two_are_not() -> None:
    assert len(domains.TRAINED) == 6
    assert [domain.name for domain in domains.UNTRAINED] == ["observatory", "vineyard"]


def test_training_never_shows_the_untrained_domains() -> None:
    unseen = {word for word in domains.vocabulary(domains.UNTRAINED) if word.isalpha()}
    assert not unseen & words(domains.TRAINED, "train", 1, 3000)
    assert len(unseen & words(domains.UNTRAINED, "train", 1, 400)) > 0.95 * len(unseen)


def test_keys_are_not_shared_within_a_domain() -> None:
    for domain in (*domains.TRAINED, *domains.UNTRAINED):
        keys = [field.key for field in (*domain.facts, *domain.columns)]
        assert len(set(keys)) == len(keys)


def test_a_domain_is_found_by_name_and_an_unknown_one_is_refused_with_the_list() -> None:
    assert domains.find("zoo") is domains.ZOO
    with pytest.raises(KeyError, match=r"no domain 'bakery': there are hotel, .*, vineyard"):
        domains.find("bakery")
