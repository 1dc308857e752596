"""What can go wrong for a user, one class for each cause.

HARM3Error                code              exit code 2 on the command line
|-- MissingInput          missing_input     a case lacks what the model needs
|-- BadCase               bad_case          case.json cannot be used
|-- BadCohort             bad_cohort        the cohort table cannot be used
|-- BadVolume             bad_volume        an image file cannot be used
|   `-- BadGeometry       bad_geometry      images do not fit together in space
|-- BadSlide              bad_slide         a slide cannot be used
|-- BadClinical           bad_clinical      clinical values cannot be used
|-- BadCheckpoint         bad_checkpoint    a checkpoint cannot be used
|-- BadOption             bad_option        a setting, device or folder cannot be used
|-- OutOfMemory           out_of_memory     the device is too small for the work
`-- Cancelled             cancelled         the user stopped the work
"""


class HARM3Error(ValueError):
    """A failure the user can mend.

    Args:
        message: one sentence: what is wrong, with its value, and what is wanted.
        advice: one sentence: what to do about it.
    """

    code = "error"

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message, advice)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".rstrip()


class MissingInput(HARM3Error):
    code = "missing_input"


class BadCase(HARM3Error):
    code = "bad_case"


class BadCohort(HARM3Error):
    code = "bad_cohort"


class BadVolume(HARM3Error):
    code = "bad_volume"


class BadGeometry(BadVolume):
    code = "bad_geometry"


class BadSlide(HARM3Error):
    code = "bad_slide"


class BadClinical(HARM3Error):
    code = "bad_clinical"


class BadCheckpoint(HARM3Error):
    code = "bad_checkpoint"


class BadOption(HARM3Error):
    code = "bad_option"


class OutOfMemory(HARM3Error):
    code = "out_of_memory"


class Cancelled(HARM3Error):
    code = "cancelled"
