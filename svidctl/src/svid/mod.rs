//! `svid fetch`, `show` and `watch`.

mod facts;
mod fetch;
mod show;
mod watch;

use crate::args::{Args, SvidCommand};
use crate::connect::Failure;
use crate::render::Screen;

pub async fn run(args: &Args, command: &SvidCommand, screen: &mut Screen) -> Result<(), Failure> {
    match command {
        SvidCommand::Fetch => fetch::run(&args.workload_socket(), screen).await,
        SvidCommand::Show { file } => show::run(file, screen),
        SvidCommand::Watch => watch::run(&args.workload_socket(), screen).await,
    }
}
