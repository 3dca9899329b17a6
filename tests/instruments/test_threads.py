"""One thread inside, as many as before afterwards, also after an error."""

from __future__ import annotations

import pytest
import torch

from snippets.instruments.threads import one_thread

pytestmark = pytest.mark.models


def test_threads_come_back_even_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
