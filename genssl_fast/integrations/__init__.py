"""Layers, functions and losses of other libraries on the kernels of this one.

``genssl_fast.integrations.nflows``, ``.normflows`` and ``.zuko`` hold subclasses of the layers of these
libraries, under the same names: same constructors, state dicts and results. Each imports its library, so none
is imported here. :func:`genssl_fast.accelerate` puts them into a model that exists. ``plan`` of each makes a
:class:`genssl_fast.FlowPlan` of a flow of couplings.

``genssl_fast.integrations.lightly``, ``.open_clip`` and ``.pytorch_metric_learning`` hold the losses of these
libraries, under the same names: same signatures, defaults and results, without matrices of pairs. They import
nothing of them.
"""
