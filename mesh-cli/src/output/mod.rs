//! Where results go: standard output, as a table for people or as JSON or YAML for programs. Remarks go to standard error,
//! so that a pipe gets the result only.

pub mod table;
pub mod time;

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::Failure;
pub use crate::output::table::{Cell, Table};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    #[default]
    Table,
    /// More columns for people
    Wide,
    /// Stable JSON
    Json,
    /// Stable YAML
    Yaml,
    /// One `kind/name` for each line
    Name,
}

pub struct Output {
    pub format: Format,
    color: bool,
    /// Of the terminal, in characters; `None` when the output is not a terminal, and nothing is wrapped.
    width: Option<u16>,
    sink: Mutex<Box<dyn Write + Send>>,
    silent: bool,
}

impl Output {
    pub fn stdout(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self {
            format,
            color,
            width: terminal.then(table::terminal_width).flatten(),
            sink: Mutex::new(Box::new(io::stdout())),
            silent: false,
        }
    }

    /// What would be written, kept; for people, as where nobody looks. Remarks are dropped.
    pub fn captured(format: Format) -> (Self, Captured) {
        let captured = Captured::default();
        let sink = Mutex::new(Box::new(captured.clone()) as Box<dyn Write + Send>);
        (Self { format, color: false, width: None, sink, silent: true }, captured)
    }

    /// Whether tables are wanted, not data.
    pub fn for_people(&self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    pub fn wide(&self) -> bool {
        self.format == Format::Wide
    }

    pub fn line(&self, text: &str) -> Result<(), Failure> {
        self.write(&format!("{text}\n"))
    }

    /// A line of what goes on, in parts.
    pub fn row(&self, cells: &[Cell]) -> Result<(), Failure> {
        let parts: Vec<_> = cells.iter().map(|cell| cell.inline(self.color)).collect();
        self.line(&parts.join("  "))
    }

    pub fn table(&self, table: &Table) -> Result<(), Failure> {
        self.write(&self.text(table))
    }

    /// The table as it would be written.
    pub fn text(&self, table: &Table) -> String {
        table.render(self.wide(), self.color, self.width)
    }

    /// The value as YAML if that was asked for, else as JSON.
    pub fn data<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = match self.format {
            Format::Yaml => yaml(value)?,
            _ => serde_json::to_string_pretty(value).map_err(unprintable)? + "\n",
        };
        self.write(&text)
    }

    /// One value of a stream: a JSON document on a line of its own, or a YAML document.
    pub fn streamed<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = match self.format {
            Format::Yaml => format!("---\n{}", yaml(value)?),
            _ => serde_json::to_string(value).map_err(unprintable)? + "\n",
        };
        self.write(&text)
    }

    /// A remark, on standard error.
    pub fn note(&self, text: &str) {
        if !self.silent {
            eprintln!("{text}");
        }
    }

    fn write(&self, text: &str) -> Result<(), Failure> {
        let mut sink = self.sink.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        sink.write_all(text.as_bytes())?;
        Ok(sink.flush()?)
    }
}

pub fn yaml<T: Serialize>(value: &T) -> Result<String, Failure> {
    let text = serde_saphyr::to_string(value).map_err(|e| Failure::new(format!("Cannot write this as YAML: {e}.")))?;
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

fn unprintable(error: serde_json::Error) -> Failure {
    Failure::new(format!("Cannot write this as JSON: {error}."))
}

/// What a command has printed.
#[derive(Clone, Default)]
pub struct Captured(std::sync::Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
