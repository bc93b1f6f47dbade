//! What ends a command without success: a sentence for the reader, what to do next, and the exit code for scripts.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// Exit codes, as documented in `docs/reference/cli.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The output was closed by its reader; nothing is wrong.
    Quiet,
    Failed,
    Usage,
    NotFound,
    /// The object is not valid, or was changed by somebody else meanwhile.
    Refused,
    Unreachable,
    TimedOut,
    /// The application that `meshctl run` started ended with this code.
    Application(u8),
}

/// Metadata of a status that is a failure of this program itself, made behind the control plane's interface.
const METADATA_EXIT: &str = "meshctl-exit";
const METADATA_HINT: &str = "meshctl-hint-bin";

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Quiet => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Refused => 4,
            Self::Unreachable => 5,
            Self::TimedOut => 6,
            Self::Application(code) => code,
        }
    }

    fn from_code(code: &str) -> Option<Self> {
        let all = [Self::Failed, Self::Usage, Self::NotFound, Self::Refused, Self::Unreachable, Self::TimedOut];
        all.into_iter().find(|exit| exit.code().to_string() == code)
    }
}

#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// One or more sentences. Empty: everything has been said already.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self::with(Exit::Failed, message)
    }

    pub fn with(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::with(Exit::Usage, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::with(Exit::NotFound, message)
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self::with(Exit::Refused, message)
    }

    /// Ends with this code, without a word.
    pub fn silent(exit: Exit) -> Self {
        Self::with(exit, "")
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says it on standard error.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("{self}");
        }
        ExitCode::from(self.exit.code())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(Exit::Quiet);
        }
        Self::new(format!("{}.", capital(&error.to_string())))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Failure>() {
            Ok(failure) => failure,
            Err(error) => Self::new(sentence(&format!("{error:#}"))),
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let message = sentence(status.message());
        let own = status.metadata().get(METADATA_EXIT).and_then(|code| Exit::from_code(code.to_str().ok()?));
        if let Some(exit) = own {
            let hint = status.metadata().get_bin(METADATA_HINT).and_then(|hint| hint.to_bytes().ok());
            return Self { exit, message, hint: hint.map(|hint| String::from_utf8_lossy(&hint).into_owned()) };
        }
        match status.code() {
            Code::NotFound => Self::not_found(message),
            Code::InvalidArgument
            | Code::Aborted
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::OutOfRange => Self::refused(message),
            Code::DeadlineExceeded => Self::with(Exit::TimedOut, message),
            Code::Unavailable => Self::with(Exit::Unreachable, format!("The control plane went away: {message}"))
                .hint("See whether mesh-control still runs; `meshctl check` tells more."),
            Code::Unimplemented => Self::new(format!("This mesh-control cannot do that: {message}"))
                .hint("It is probably older than this meshctl; `meshctl version` shows both."),
            // Nobody has answered so: the connection itself is the reason.
            Code::Unknown if status.source().is_some() || message.contains("transport error") => {
                Self::with(Exit::Unreachable, "The connection to the control plane broke.".to_owned())
                    .hint("See whether mesh-control still runs; `meshctl check` tells more.")
            }
            code => Self::new(format!("mesh-control answered {code:?}: {message}")),
        }
    }
}

/// Keeps the exit code and the hint for when it becomes a failure again.
impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        let mut status = Self::unknown(failure.message);
        if let Ok(code) = failure.exit.code().to_string().parse() {
            status.metadata_mut().insert(METADATA_EXIT, code);
        }
        if let Some(hint) = failure.hint {
            let hint = tonic::metadata::MetadataValue::from_bytes(hint.as_bytes());
            status.metadata_mut().insert_bin(METADATA_HINT, hint);
        }
        status
    }
}

/// Makes a sentence of a message that may or may not be one.
pub fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return "No reason was given.".to_owned();
    }
    let end = if text.ends_with(['.', '!', '?', ':']) { "" } else { "." };
    format!("{}{end}", capital(text))
}

fn capital(text: &str) -> String {
    // A message that starts with a file name, a field path or a quoted word stays as it is.
    let first_word = text.split_whitespace().next().unwrap_or_default();
    if !first_word.chars().all(|c| c.is_ascii_lowercase()) {
        return text.to_owned();
    }
    let mut chars = text.chars();
    chars.next().map(|c| c.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_sentences() {
        assert_eq!(sentence("no such object"), "No such object.");
        assert_eq!(sentence("shop.yaml:3:5: spec.rules: unknown field"), "shop.yaml:3:5: spec.rules: unknown field.");
        assert_eq!(sentence("Done."), "Done.");
    }

    #[test]
    fn each_kind_of_status_has_its_exit_code() {
        let code = |code| Failure::from(tonic::Status::new(code, "x")).exit.code();
        assert_eq!(code(tonic::Code::NotFound), 3);
        assert_eq!(code(tonic::Code::InvalidArgument), 4);
        assert_eq!(code(tonic::Code::Aborted), 4);
        assert_eq!(code(tonic::Code::Unavailable), 5);
        assert_eq!(code(tonic::Code::DeadlineExceeded), 6);
        assert_eq!(code(tonic::Code::Internal), 1);
    }

    #[test]
    fn a_failure_comes_through_a_status_as_it_was() {
        let failure = Failure::refused("It is owned by \"kubectl\".").hint("Take it \u{2013} over.");
        let back = Failure::from(tonic::Status::from(failure));
        assert_eq!((back.exit, back.message.as_str()), (Exit::Refused, "It is owned by \"kubectl\"."));
        assert_eq!(back.hint.as_deref(), Some("Take it \u{2013} over."));
    }

    #[test]
    fn a_failure_inside_anyhow_keeps_its_code() {
        let wrapped = anyhow::Error::new(Failure::not_found("Nothing."));
        assert_eq!(Failure::from(wrapped).exit, Exit::NotFound);
    }
}
