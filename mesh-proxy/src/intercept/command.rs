//! `mesh-proxy intercept`: the command line of this module.

use mesh_common::names::{self, port};

use super::{Cidr, Error, Rules, apply, remove, self_test};

/// Write the interception rules of the current network namespace, and end.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Remove the rules instead
    #[arg(long)]
    pub remove: bool,
    /// Prove that the rules work, before any proxy listens; by a user whose traffic is not left alone
    #[arg(long, conflicts_with = "remove")]
    pub test: bool,
    /// Port that connections of the application are redirected to
    #[arg(long, default_value_t = port::OUTBOUND)]
    pub outbound_port: u16,
    /// Port that connections to the application are redirected to
    #[arg(long, default_value_t = port::INBOUND)]
    pub inbound_port: u16,
    /// Port that DNS questions of the application are redirected to
    #[arg(long, default_value_t = port::DNS)]
    pub dns_port: u16,
    /// Leave DNS alone
    #[arg(long)]
    pub no_dns: bool,
    /// Hand datagrams to virtual addresses of the mesh to the outbound port too; the proxy needs CAP_NET_ADMIN for them
    #[arg(long)]
    pub udp: bool,
    /// Mark (SO_MARK) of the traffic that is the proxy's own
    #[arg(long, value_parser = mark, default_value_t = names::SOCKET_MARK)]
    pub mark: u32,
    /// Leave the traffic of this user id alone, such as the proxy's or the local resolver's (may be repeated)
    #[arg(long = "uid", value_name = "UID")]
    pub uids: Vec<u32>,
    /// Ports that peers reach without the proxy
    #[arg(long, value_delimiter = ',', value_name = "PORT", default_values_t = Rules::default().exclude_inbound_ports)]
    pub exclude_inbound_ports: Vec<u16>,
    /// Destination ports that the application reaches without the proxy
    #[arg(long, value_delimiter = ',', value_name = "PORT")]
    pub exclude_outbound_ports: Vec<u16>,
    /// Destination addresses that the application reaches without the proxy, such as 10.0.0.0/8
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub exclude_cidrs: Vec<Cidr>,
}

/// Entry of `mesh-proxy intercept`.
pub fn execute(args: &Args) -> Result<(), Error> {
    if args.remove {
        return remove();
    }
    let mut rules = args.rules();
    match apply(&rules) {
        // Connections are worth more than nothing.
        Err(error @ Error::Module { module: "nft_tproxy", .. }) if rules.udp => {
            eprintln!("datagrams will not be intercepted: {error}");
            rules.udp = false;
            apply(&rules)?;
        }
        applied => applied?,
    }
    if args.test {
        println!("{}", self_test(&rules)?);
    }
    Ok(())
}

impl Args {
    pub fn rules(&self) -> Rules {
        Rules {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            dns_port: (!self.no_dns).then_some(self.dns_port),
            udp: self.udp,
            mark: self.mark,
            exclude_uids: self.uids.clone(),
            exclude_inbound_ports: self.exclude_inbound_ports.clone(),
            exclude_outbound_ports: self.exclude_outbound_ports.clone(),
            exclude_cidrs: self.exclude_cidrs.clone(),
        }
    }
}

/// Marks are usually written in hexadecimal.
fn mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match number {
        // Every socket that sets no mark has mark 0.
        Ok(0) => Err("0 is the mark of all other traffic".into()),
        Ok(mark) => Ok(mark),
        Err(_) => Err(format!("`{text}` is not a mark: write it like 0x6d657368")),
    }
}
