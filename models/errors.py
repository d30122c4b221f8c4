"""Every error that the user of models/ can cause and mend: one class per kind, all of them ExportErrors.

The message is for the person at the keyboard: what is wrong, with the value and where; what was expected;
what to do. The command line prints it without a traceback and ends with exit code 2. Anything that is not
an ExportError is a bug of ours and keeps its traceback. This file imports nothing, so that all may import it.
"""


class ExportError(Exception):
    """The network asked for cannot be exported as asked; str(error) says why, and the mend."""


class UnknownTarget(ExportError):
    """TARGET is neither a network in models/ nor a `package.module:factory` that can be imported."""


class FactoryFailed(ExportError):
    """The factory was found, but it raised, or returned something that is not a network."""


class MissingExtra(ExportError):
    """A network needs a package of an optional extra that is not installed."""


class UnknownActivation(ExportError, ValueError):
    """An activation was asked for by a name that models/activations.py does not have."""


class WeightsDoNotFit(ExportError):
    """The weights file has missing, unexpected or mis-shaped keys for the network; all are listed."""


class WeightsUnreadable(ExportError):
    """The weights file is not there, cut short, or in no format that we read."""


class UnsafeWeights(ExportError):
    """The weights file is a pickle that could run code while it loads; it was not loaded."""


class BadExample(ExportError):
    """The example inputs do not fit the network, or are no tensors with the rows in dim 0."""


class BadLabels(ExportError):
    """The labels cannot be read, or are not as many as an output has columns."""


class NotCapturable(ExportError):
    """torch.export cannot capture the network (for example, control flow that depends on values)."""


class FormNotWritten(NotCapturable):
    """One of the two files cannot be written, loaded or run; the message is the reason alone: the other one may do."""


class FormNotUsable(ExportError):
    """The one file asked for is none that we write, or does not go with another setting."""


class PrecisionNotUsable(ExportError):
    """The precision asked for is none that we write, or does not go with another setting."""


class NameNotUsable(ExportError):
    """A model name or version cannot be the name of a folder in a repository (a slash, for example)."""


class VersionExists(ExportError):
    """The repository already has this version of the model; versions are never overwritten."""


class ParityFailed(ExportError):
    """The exported network's answers differ from the eager network's beyond the tolerance."""


class NotWritable(ExportError):
    """The artifact could not be written (a full disk, a read-only folder); nothing was left behind."""
