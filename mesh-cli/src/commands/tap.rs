//! `meshctl tap`: single requests as they end, and why they went where they went.

use std::time::{Duration, Instant};

use http::{HeaderName, Method};
use mesh_common::proto::control::{TapAsked, TapRequest, TapResponse};
use mesh_common::proto::telemetry::{Direction, StatusRange, TapFilter, TapParty};
use mesh_common::tap::{MAX_ALTERNATIVES, MAX_HEADERS, MAX_RATE, RATE, party};
use tokio::signal::unix::{SignalKind, signal};
use tonic::Status;

use crate::commands::Context;
use crate::failure::Failure;
use crate::output::Format;
use crate::output::time::parse_positive_duration;
use crate::views::tap::pairs::{Pairs, Seen};
use crate::views::tap::{self, View};

/// How often it is said how many are not shown.
const NOTES: Duration = Duration::from_secs(1);

/// Show requests and byte streams as they end, and why they went where they went
///
/// The proxies tell the control plane, for as long as somebody asks; nothing is stored. A request is shown once: as its caller's proxy saw it, with the policy
/// that let it in at the server; or as the server's proxy saw it, where the caller has no proxy that tells. With WHOSE or --direction each side is shown for itself. Only requests
/// that begin while it is shown are told, and byte streams that end then. A proxy tells --max-rate at once and as many in each second after that; how many more events there were, of
/// either side, is said. A server knows a caller by its service account: where several services have the same one, --from shows the calls of all of them that only the server's proxy
/// tells. Queries are left out, headers
/// are shown only when they are asked for, and of those that may prove who somebody is (`authorization`, `cookie`, whatever has `token` or `secret` in its name or ends in `key`)
/// only that they are there. It goes on until Ctrl-C, --count or --for.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl tap
  meshctl tap --from web --to reviews --status 5xx
  meshctl tap reviews --path /api --header end-user
  meshctl tap --failed --count 20 --for 1m -o json")]
pub struct Args {
    /// Only what the proxies of this service, or of this workload, see
    #[arg(value_name = "WHOSE")]
    whose: Option<String>,
    /// Only calls by this service, or by this service account as NAME.NAMESPACE; may be given several times
    #[arg(long, value_name = "CALLER")]
    from: Vec<String>,
    /// Only calls of this service; may be given several times
    #[arg(long, value_name = "SERVICE")]
    to: Vec<String>,
    /// Only what one side sees
    #[arg(long, value_enum, value_name = "SIDE")]
    direction: Option<Side>,
    /// Only requests with this method; may be given several times
    #[arg(long, value_name = "METHOD", value_parser = parse_method)]
    method: Vec<String>,
    /// Only requests whose path begins so
    #[arg(long, value_name = "PREFIX", value_parser = parse_path)]
    path: Option<String>,
    /// Only responses with this status, such as 404, 5xx or 500-503, or `none` where there was no response; may be given several times
    #[arg(long, value_name = "STATUS", value_parser = parse_status)]
    status: Vec<StatusRange>,
    /// Only what has failed: no response, a status of 500 or more, or a gRPC status that says that the server failed
    #[arg(long)]
    failed: bool,
    /// Only what took that long or longer
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    min_duration: Option<Duration>,
    /// Show this header of requests and responses; may be given several times
    #[arg(long, value_name = "NAME", value_parser = parse_header)]
    header: Vec<String>,
    /// How many each proxy tells in a second, at most, and how many at once
    #[arg(long, value_name = "NUMBER", default_value_t = RATE, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    max_rate: u32,
    /// End after so many
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after that time
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_positive_duration)]
    lasts: Option<Duration>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Side {
    /// What comes in: the servers' proxies
    Inbound,
    /// What goes out: the callers' proxies
    Outbound,
}

fn parse_method(text: &str) -> Result<String, String> {
    let method = Method::from_bytes(text.to_ascii_uppercase().as_bytes());
    method.map(|method| method.to_string()).map_err(|_| "this is not a method: give GET, POST and the like".to_owned())
}

fn parse_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("a path begins with a slash".to_owned());
    }
    if text.contains(['?', '#']) {
        return Err("queries are not looked at: give the path alone".to_owned());
    }
    Ok(text.to_owned())
}

fn parse_status(text: &str) -> Result<StatusRange, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(StatusRange { first: 0, last: 0 });
    }
    let one = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status) && text.len() == 3);
    let class = || {
        let class: u32 = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX"))?.parse().ok()?;
        (1..=5).contains(&class).then_some((class * 100, class * 100 + 99))
    };
    let range = || {
        let (first, last) = text.split_once('-')?;
        Some((one(first)?, one(last)?)).filter(|(first, last)| first <= last)
    };
    let found = one(text).map(|status| (status, status)).or_else(class).or_else(range);
    let (first, last) =
        found.ok_or("give a status such as 404, a class such as 5xx, a range such as 500-503, or none")?;
    Ok(StatusRange { first, last })
}

fn parse_header(text: &str) -> Result<String, String> {
    let name = HeaderName::try_from(text);
    name.map(|name| name.to_string()).map_err(|_| "this is not the name of a header".to_owned())
}

fn request(context: &Context, args: &Args) -> Result<TapRequest, Failure> {
    for (option, number, most) in [
        ("--from", args.from.len(), MAX_ALTERNATIVES),
        ("--to", args.to.len(), MAX_ALTERNATIVES),
        ("--method", args.method.len(), MAX_ALTERNATIVES),
        ("--status", args.status.len(), MAX_ALTERNATIVES),
        ("--header", args.header.len(), MAX_HEADERS),
    ] {
        if number > most {
            return Err(Failure::usage(format!("{option} can be given {most} times at most.")));
        }
    }
    let named = |option: &str, word: &String| {
        party(word.trim(), context.namespace()).map_err(|wrong| Failure::usage(format!("{option}: {wrong}.")))
    };
    let parties = |option: &str, words: &[String]| -> Result<Vec<TapParty>, Failure> {
        words.iter().map(|word| named(option, word)).collect()
    };
    let direction = match args.direction {
        None => Direction::Unspecified,
        Some(Side::Inbound) => Direction::Inbound,
        Some(Side::Outbound) => Direction::Outbound,
    };
    let filter = TapFilter {
        from: parties("--from", &args.from)?,
        to: parties("--to", &args.to)?,
        namespace: context.namespace.clone().unwrap_or_default(),
        direction: direction.into(),
        methods: args.method.clone(),
        path_prefix: args.path.clone().unwrap_or_default(),
        statuses: args.status.clone(),
        min_duration_ms: args.min_duration.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
        failed: args.failed,
    };
    let whose = args.whose.as_ref().map(|word| named("WHOSE", word)).transpose()?;
    Ok(TapRequest { filter: Some(filter), whose, max_rate: args.max_rate, headers: args.header.clone() })
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let request = request(context, &args)?;
    // Of one side there is nothing to put together.
    let apart = args.whose.is_some() || args.direction.is_some();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut screen = Screen { context, pairs: Pairs::new(apart), left: args.count, lost: Lost::default(), asked: None };
    let ends = args.lasts.map(|lasts| tokio::time::Instant::now() + lasts);
    let control = context.connect().await?;
    let mut told = control.mesh().tap(request).await?.into_inner();
    while screen.left != Some(0) {
        let due = [screen.pairs.due(), screen.lost.due()].into_iter().flatten().min();
        let response = tokio::select! {
            response = told.message() => response?.ok_or_else(|| Status::unavailable("it ended the tap"))?,
            () = until(due.map(Into::into)) => TapResponse::default(),
            () = until(ends) => break,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        screen.take(response, Instant::now())?;
    }
    screen.end()
}

/// How many are asked, for people.
fn who_tells(proxies: u32) -> String {
    match proxies {
        0 => "No such proxy reports yet; `meshctl proxy status` shows those that are connected.".to_owned(),
        1 => "One proxy tells. Ctrl-C ends.".to_owned(),
        proxies => format!("{proxies} proxies tell. Ctrl-C ends."),
    }
}

/// For ever, if there is no such moment.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

struct Screen<'a> {
    context: &'a Context,
    pairs: Pairs,
    /// How many more are to be shown, if that is limited.
    left: Option<u64>,
    lost: Lost,
    /// How many proxies are asked, once that is known.
    asked: Option<u32>,
}

/// How many were not shown, and since when that is not said.
#[derive(Default)]
struct Lost {
    number: u64,
    since: Option<Instant>,
}

impl Lost {
    fn add(&mut self, number: u64, now: Instant) {
        if number > 0 {
            self.number = self.number.saturating_add(number);
            self.since.get_or_insert(now);
        }
    }

    fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + NOTES)
    }
}

impl Screen<'_> {
    fn take(&mut self, response: TapResponse, now: Instant) -> Result<(), Failure> {
        if let Some(TapAsked { proxies, identities }) = response.asked {
            self.pairs.ask(identities);
            if self.asked.replace(proxies).is_none() {
                self.context.out.note(&who_tells(proxies));
            }
        }
        for event in response.events {
            if let Some(seen) = self.pairs.add(event, now) {
                self.show(&seen)?;
            }
        }
        for seen in self.pairs.take_due(now) {
            self.show(&seen)?;
        }
        self.lost.add(response.not_shown.saturating_add(self.pairs.take_unpaired()), now);
        if self.lost.due().is_some_and(|due| due <= now) {
            self.say_lost();
        }
        Ok(())
    }

    fn show(&mut self, seen: &Seen) -> Result<(), Failure> {
        match &mut self.left {
            Some(0) => return Ok(()),
            Some(left) => *left -= 1,
            None => (),
        }
        let (out, namespace) = (&self.context.out, self.context.namespace());
        match out.format {
            Format::Json | Format::Yaml => out.streamed(&View::of(seen)),
            Format::Name => out.line(&tap::name(seen, namespace)),
            Format::Table | Format::Wide => out.row(&tap::line(seen, namespace, out.wide())),
        }
    }

    fn say_lost(&mut self) {
        let Lost { number, .. } = std::mem::take(&mut self.lost);
        if number > 0 {
            self.context.out.note(&format!("{number} more not shown"));
        }
    }

    fn end(mut self) -> Result<(), Failure> {
        let now = Instant::now();
        for seen in self.pairs.rest(now) {
            self.show(&seen)?;
        }
        self.lost.add(self.pairs.take_unpaired(), now);
        self.say_lost();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_written_in_several_ways() {
        let range = |text: &str| parse_status(text).map(|it| (it.first, it.last));
        assert_eq!(range("404"), Ok((404, 404)));
        assert_eq!(range("5xx"), Ok((500, 599)));
        assert_eq!(range("500-503"), Ok((500, 503)));
        assert_eq!(range("none"), Ok((0, 0)));
        for wrong in ["", "4", "6xx", "xx", "503-500", "99", "600", "0503", "+50", "ok", "500-", "404,500"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_is_asked_is_said() {
        assert!(who_tells(0).contains("No such proxy"));
        assert_eq!(
            (who_tells(1), who_tells(4)),
            ("One proxy tells. Ctrl-C ends.".into(), "4 proxies tell. Ctrl-C ends.".into())
        );
    }

    #[test]
    fn what_cannot_be_meant_is_said_so() {
        assert_eq!(parse_method("get").unwrap(), "GET");
        assert!(parse_method("G T").is_err());
        assert_eq!(parse_path("/api").unwrap(), "/api");
        assert!(parse_path("api").is_err());
        assert!(parse_path("/api?token=x").unwrap_err().contains("queries"));
        assert_eq!(parse_header("End-User").unwrap(), "end-user");
        assert!(parse_header("a: b").is_err());
    }
}
