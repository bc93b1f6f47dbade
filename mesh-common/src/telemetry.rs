//! Logging of the three programs: lines on standard error, as text or JSON, at levels that can be changed while running.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "{filter:?} is not a log filter ({reason}); write a level (error, warn, info, debug, trace) or `module=level,...`"
    )]
    Filter { filter: String, reason: String },
    #[error("{0:?} is not a log format; write `text` or `json`")]
    Format(String),
    #[error("logging has been set up already")]
    Twice,
    #[error("logging has ended, its levels cannot be changed any more")]
    Ended,
}

/// Changes the levels of a running program.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<String>>,
}

/// Sets up logging for the process; call it once, in `main`. `filter` has the syntax of `RUST_LOG`.
pub fn init(filter: &str, format: LogFormat) -> Result<LogFilter, TelemetryError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer).with(lines).try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(LogFilter { handle, current: Arc::new(Mutex::new(filter.to_owned())) })
}

impl LogFilter {
    /// Puts `filter` in force at once and returns the one that was. A filter that cannot be read changes nothing, and neither
    /// does one with a mistyped level: RUST_LOG takes `inof` for a module, so that nothing else would be logged any more.
    pub fn set(&self, filter: &str) -> Result<String, TelemetryError> {
        let parsed = parse(filter)?;
        if let Some(word) = neither_level_nor_module(filter) {
            let reason = format!("`{word}` is no level");
            return Err(TelemetryError::Filter { filter: filter.to_owned(), reason });
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle.reload(parsed).map_err(|_| TelemetryError::Ended)?;
        Ok(std::mem::replace(&mut current, filter.to_owned()))
    }

    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.current()).finish()
    }
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format(text.to_owned())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Where the client of the API server writes an error for each attempt that fails. Whoever makes the attempts says once what
/// is wrong.
const EACH_ATTEMPT: &str = "kube_client::client::builder";

/// Without the lines of [`EACH_ATTEMPT`], unless the filter speaks of them.
fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let wrong = |reason: String| TelemetryError::Filter { filter: filter.to_owned(), reason };
    let made = EnvFilter::builder().parse(filter).map_err(|error| wrong(error.to_string()))?;
    if filter.contains("kube_client") {
        return Ok(made);
    }
    let off = format!("{EACH_ATTEMPT}=off").parse().map_err(|error: ParseError| wrong(error.to_string()))?;
    Ok(made.add_directive(off))
}

/// A part of the filter that is one word and no level, or the empty filter.
fn neither_level_nor_module(filter: &str) -> Option<&str> {
    // RUST_LOG takes a lone word for a module; here it has to be written as `word=trace`. A span stands in brackets.
    filter.split(',').find(|part| part.is_empty() || !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_attempts_are_written_only_where_the_filter_speaks_of_them() {
        let said = |filter: &str| parse(filter).unwrap().to_string();
        assert!(said("info").contains("kube_client::client::builder=off"));
        assert!(!said("info,kube_client=debug").contains("off"));
        assert!(said("debug,mesh_control=trace").contains("mesh_control=trace"));
    }

    #[test]
    fn levels_change_while_running() {
        let filter = init("info", LogFormat::Json).unwrap();
        assert!(tracing::enabled!(tracing::Level::INFO));
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        assert_eq!(filter.set("debug").unwrap(), "info");
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        let error = filter.set("mesh=loud").unwrap_err();
        assert!(error.to_string().contains("is not a log filter"), "{error}");
        for mistyped in ["inof", "info,mesh_proxy", "", "info,"] {
            let error = filter.set(mistyped).unwrap_err();
            assert!(error.to_string().contains("is no level"), "{mistyped}: {error}");
        }
        assert_eq!(filter.current(), "debug");
        for good in ["INFO", "off", "info,mesh_proxy::xds=trace", "debug"] {
            filter.set(good).unwrap();
        }
        assert!(matches!(init("info", LogFormat::Text), Err(TelemetryError::Twice)));
    }
}
