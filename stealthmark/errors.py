"""The two ways a stage may end early: the user must act, or one cell of the study failed."""


class UserError(Exception):
    """Input that a person must mend: one sentence naming the file or field, the value found and what is allowed."""


class CellFailure(Exception):
    """One cell of the study could not be computed (a loss became NaN, say); its rows carry this text as status."""
