//! Logs in the format of logrus, SPIRE's logger: text by default, JSON on request.
//!
//! Fields of the surrounding spans are added to each line; a field of the event wins over one of a span.
//! Crates that are not ours are heard from `warn` up, and below that only when the level is `trace`.

mod format;
mod layer;
mod output;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tracing_subscriber::layer::SubscriberExt as _;

pub use layer::{LogrusLayer, chain};
pub use output::LogOutput;

/// Levels of logrus, the most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    /// Nothing we log is that severe.
    Panic,
    /// Nothing we log is that severe.
    Fatal,
    /// Errors.
    Error,
    /// Warnings.
    Warn,
    /// The default.
    Info,
    /// Debugging.
    Debug,
    /// Everything, other crates too.
    Trace,
}

impl LogLevel {
    const ALL: [Self; 7] =
        [Self::Panic, Self::Fatal, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// As logrus prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warn => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for LogLevel {
    type Err = LogError;

    /// Any case; `warn` and `warning` are the same.
    fn from_str(text: &str) -> Result<Self, LogError> {
        let lower = text.to_ascii_lowercase();
        let lower = if lower == "warn" { "warning" } else { lower.as_str() };
        Self::ALL
            .into_iter()
            .find(|level| level.as_str() == lower)
            .ok_or_else(|| LogError::Level(text.into()))
    }
}

/// Form of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// As [`LogFormat::Text`] with times in whole seconds: what SPIRE prints when no format is configured.
    #[default]
    Plain,
    /// `time="..." level=info msg="..." key=value`.
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text.to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogError::Format(text.into())),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a level.
    #[error("not a valid logrus Level: {0:?}")]
    Level(String),
    /// Not a format.
    #[error("unknown logger format: {0:?}")]
    Format(String),
    /// The file could not be opened.
    #[error("unable to open log file {path}", path = .path.display())]
    Open {
        /// The configured file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another subscriber is in place.
    #[error("logging is set up already")]
    AlreadySet,
}

/// How to log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Least severe level that is printed.
    pub level: LogLevel,
    /// Form of the lines.
    pub format: LogFormat,
    /// File to append to (created with mode 0640); standard output when `None`.
    pub file: Option<PathBuf>,
    /// Whether each line says where in the source it comes from.
    pub source_location: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Plain, file: None, source_location: false }
    }
}

/// Changes the level and reopens the file of a running log.
#[derive(Clone, Debug)]
pub struct LogControl {
    level: Arc<AtomicU8>,
    launch: LogLevel,
    output: Arc<LogOutput>,
}

impl LogControl {
    /// The level in force.
    pub fn level(&self) -> LogLevel {
        let at = usize::from(self.level.load(Ordering::Relaxed));
        LogLevel::ALL.get(at).copied().unwrap_or(LogLevel::Trace)
    }

    /// The level of the configuration.
    pub fn launch_level(&self) -> LogLevel {
        self.launch
    }

    /// Changes the level from now on.
    pub fn set_level(&self, level: LogLevel) {
        self.level.store(level as u8, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Back to the level of the configuration.
    pub fn reset_level(&self) {
        self.set_level(self.launch);
    }

    /// Opens the file again after a rotation; without a file nothing happens.
    ///
    /// # Errors
    /// [`LogError::Open`]; lines go on to the old file then.
    pub fn reopen(&self) -> Result<(), LogError> {
        self.output.reopen()
    }
}

/// The layer and its control, for a subscriber of the caller's.
///
/// # Errors
/// [`LogError::Open`].
pub fn layer(options: &LogOptions) -> Result<(LogrusLayer, LogControl), LogError> {
    let output = Arc::new(LogOutput::open(options.file.as_deref())?);
    let level = Arc::new(AtomicU8::new(options.level as u8));
    let control =
        LogControl { level: Arc::clone(&level), launch: options.level, output: Arc::clone(&output) };
    Ok((LogrusLayer::new(level, output, options.format, options.source_location), control))
}

/// Sets up the log of this process.
///
/// # Errors
/// [`LogError::Open`], [`LogError::AlreadySet`].
pub fn init(options: &LogOptions) -> Result<LogControl, LogError> {
    let (layer, control) = layer(options)?;
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadySet)?;
    Ok(control)
}

#[cfg(test)]
mod tests;
