"""What every script needs and no paper describes."""

import lazy_loader

# Nothing is imported before it is used: PyTorch takes seconds. The stub says what there is.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
