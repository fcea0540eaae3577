"""The losses of this package as criterions of `fairseq-train`.

    fairseq-train DATA --user-dir "$(python -m parlai_safety.integrations.fairseq_user)" --criterion cringe …

The folder that this prints, `user_dir/safety_criterions`, is a package of its own, because fairseq puts the folder
*around* it on Python's path: nothing else may stand there, least of all something called `fairseq`. It imports fairseq,
so `user_dir` is no package of ours. What a criterion computes is in `batches`, which needs no fairseq.
"""

from __future__ import annotations
