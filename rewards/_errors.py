"""What goes wrong with rewards and components, in one line each; importing this imports no torch."""


class RewardError(ValueError):
    """A reward that cannot be built, or that broke its contract. Says which reward, what, why, and what to do."""


class RegistryError(ValueError):
    """A name that no component has, or an object that is not a component. The message says what to do."""
