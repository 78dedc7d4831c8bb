//! The flags of `run` and `validate`, written the way Go's flag package reads them.

use std::ffi::OsString;
use std::path::PathBuf;

/// Flags that lie over the configuration file. An empty value does not override.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFlags {
    /// `-config`.
    pub config: Option<PathBuf>,
    /// `-expandEnv`.
    pub expand_env: bool,
    /// `-bindAddress`.
    pub bind_address: Option<String>,
    /// `-serverPort`.
    pub server_port: Option<u16>,
    /// `-dataDir`.
    pub data_dir: Option<PathBuf>,
    /// `-socketPath`.
    pub socket_path: Option<PathBuf>,
    /// `-trustDomain`.
    pub trust_domain: Option<String>,
    /// `-logFile`.
    pub log_file: Option<PathBuf>,
    /// `-logLevel`.
    pub log_level: Option<String>,
    /// `-logFormat`.
    pub log_format: Option<String>,
    /// `-logSourceLocation`.
    pub log_source_location: bool,
    /// `-newTrustDomain`, which SPIRE does not have.
    pub new_trust_domain: bool,
}

/// Why the command line was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The value is missing.
    #[error("flag needs an argument: -{0}")]
    NeedsArgument(String),
    /// The value is not of the flag's type.
    #[error("invalid value {value:?} for flag -{flag}: parse error")]
    Value {
        /// The flag.
        flag: String,
        /// What was given.
        value: String,
    },
    /// The argument is not UTF-8.
    #[error("argument is not valid UTF-8")]
    Encoding,
    /// Help was asked for.
    #[error("{}", USAGE)]
    Help,
}

/// What `-h` prints.
pub const USAGE: &str = "Usage of run:
  -bindAddress string
    \tIP address or DNS name of the server
  -config string
    \tPath to a configuration file
  -dataDir string
    \tDirectory to store runtime data to
  -expandEnv
    \tExpand environment variables in the configuration file
  -logFile string
    \tFile to write logs to
  -logFormat string
    \t'text' or 'json'
  -logLevel string
    \t'debug', 'info', 'warn', or 'error'
  -logSourceLocation
    \tInclude source file and line number in log lines
  -newTrustDomain
    \tStart a trust domain that this data directory has served anew, in a database that does not know it
  -serverPort int
    \tPort number of the server
  -socketPath string
    \tPath to bind the admin socket to
  -trustDomain string
    \tThe trust domain that this server belongs to";

impl RunFlags {
    /// Reads the arguments behind the command's name.
    /// # Errors
    /// [`FlagError`] for the first argument that is wrong.
    pub fn parse(args: &[OsString]) -> Result<Self, FlagError> {
        let mut flags = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let text = arg.to_str().ok_or(FlagError::Encoding)?;
            let Some(name) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else { break };
            if name.is_empty() {
                break;
            }
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            if flags.set_switch(name, inline.as_deref())? {
                continue;
            }
            if !TEXT_FLAGS.contains(&name) {
                return Err(unknown(name));
            }
            let value = match inline {
                Some(value) => value,
                None => next_text(&mut args, name)?,
            };
            flags.set_text(name, value)?;
        }
        Ok(flags)
    }

    fn set_switch(&mut self, name: &str, value: Option<&str>) -> Result<bool, FlagError> {
        let slot = match name {
            "expandEnv" => &mut self.expand_env,
            "logSourceLocation" => &mut self.log_source_location,
            "newTrustDomain" => &mut self.new_trust_domain,
            _ => return Ok(false),
        };
        *slot = match value {
            None | Some("true" | "TRUE" | "True" | "t" | "T" | "1") => true,
            Some("false" | "FALSE" | "False" | "f" | "F" | "0") => false,
            Some(other) => return Err(FlagError::Value { flag: name.into(), value: other.into() }),
        };
        Ok(true)
    }

    fn set_text(&mut self, name: &str, value: String) -> Result<(), FlagError> {
        if name == "serverPort" {
            let port = value.parse::<u16>();
            let port = port.map_err(|_| FlagError::Value { flag: name.into(), value: value.clone() })?;
            self.server_port = (port != 0).then_some(port);
            return Ok(());
        }
        let value = (!value.is_empty()).then_some(value);
        match name {
            "config" => self.config = value.map(PathBuf::from),
            "bindAddress" => self.bind_address = value,
            "dataDir" => self.data_dir = value.map(PathBuf::from),
            "socketPath" => self.socket_path = value.map(PathBuf::from),
            "trustDomain" => self.trust_domain = value,
            "logFile" => self.log_file = value.map(PathBuf::from),
            "logLevel" => self.log_level = value,
            _ => self.log_format = value,
        }
        Ok(())
    }
}

const TEXT_FLAGS: &[&str] = &[
    "serverPort",
    "config",
    "bindAddress",
    "dataDir",
    "socketPath",
    "trustDomain",
    "logFile",
    "logLevel",
    "logFormat",
];

fn unknown(name: &str) -> FlagError {
    match name {
        "h" | "help" => FlagError::Help,
        _ => FlagError::Unknown(name.to_owned()),
    }
}

fn next_text<'a>(args: &mut impl Iterator<Item = &'a OsString>, name: &str) -> Result<String, FlagError> {
    let value = args.next().ok_or_else(|| FlagError::NeedsArgument(name.to_owned()))?;
    value.to_str().map(str::to_owned).ok_or(FlagError::Encoding)
}
