//! Puts the plugin into a node's network configuration, or takes it out, and keeps it so.

use std::ffi::OsStr;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::POD_ANNOTATIONS;

/// Type of the plugin, and so the name of its program.
const PLUGIN: &str = "mesh-cni";
/// Whoever installs the node's network writes its configuration anew now and then.
const LOOK: Duration = Duration::from_secs(1);

/// Be the CNI plugin of this node, until told to end.
#[derive(Clone, Debug, clap::Args)]
pub struct InstallArgs {
    /// Folder for plugins, as the container runtime knows it
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Folder of network configurations, whose first one the container runtime takes
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Take the plugin out of the configuration instead, and keep it out
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub remove: bool,
    /// Only say whether the configuration is as it should be
    #[arg(long)]
    pub check: bool,
}

impl InstallArgs {
    /// `None`: the configuration is as it should be.
    fn wanted(&self, config: &Value) -> Option<Value> {
        if self.remove { without_plugin(config) } else { with_plugin(config) }
    }
}

/// Whether the container runtime calls the plugin, or calls it no more; the error says why not.
pub fn check(args: &InstallArgs) -> anyhow::Result<()> {
    let (file, config) = read(&args.conf_dir)?;
    let right = args.wanted(&config).is_none();
    anyhow::ensure!(right, "the plugin is {} {}", if args.remove { "still in" } else { "not in" }, file.display());
    Ok(())
}

/// Copies this program, and keeps it in the configuration until `stop`. It stays there then: while another one of these is
/// started, pods are, too. Only one that is told to remove it takes it out; the program stays in any case, for runtimes that
/// call it when pods from before end.
pub async fn install(args: &InstallArgs, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    if !args.remove {
        let program = args.bin_dir.join(PLUGIN);
        let own = fs::read("/proc/self/exe").context("cannot read this program")?;
        replace(&program, &own, 0o755).with_context(|| format!("cannot write {}", program.display()))?;
        tracing::info!(program = %program.display(), "copied the plugin");
    }
    tokio::pin!(stop);
    let mut looks = tokio::time::interval(LOOK);
    let mut said = String::new();
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = looks.tick() => {}
        }
        // What is wrong now may be right when the node's network is installed.
        match change(args) {
            Ok(None) => said.clear(),
            Ok(Some(file)) => tracing::info!(file = %file.display(), "changed the network configuration"),
            Err(error) => {
                let text = format!("{error:#}");
                if text != said {
                    tracing::warn!("the network configuration is not as it should be: {text}");
                }
                said = text;
            }
        }
    }
    if args.remove {
        // One that still kept it may have put it back once more before its end.
        change(args)?;
    }
    Ok(())
}

/// Changes the configuration that the runtime takes, at once. `None`: there was nothing to change.
fn change(args: &InstallArgs) -> anyhow::Result<Option<PathBuf>> {
    let (file, config) = read(&args.conf_dir)?;
    let Some(changed) = args.wanted(&config) else { return Ok(None) };
    let mode = fs::metadata(&file).map_or(0o600, |metadata| metadata.permissions().mode());
    let text = serde_json::to_string_pretty(&changed)? + "\n";
    replace(&file, text.as_bytes(), mode).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Some(file))
}

/// The configuration that the runtime takes, if a plugin can be chained to it.
fn read(folder: &Path) -> anyhow::Result<(PathBuf, Value)> {
    let file = active(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .with_context(|| format!("there is no network configuration in {} yet", folder.display()))?;
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let config: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    anyhow::ensure!(
        config["plugins"].is_array(),
        "{} is of a single plugin, which can have no others behind it; make it a .conflist",
        file.display()
    );
    Ok((file, config))
}

/// The first in the order of names.
fn active(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if ["conflist", "conf", "json"].iter().any(|it| path.extension() == Some(OsStr::new(it))) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files.into_iter().next())
}

/// `None`: it is there already, as it should be.
fn with_plugin(config: &Value) -> Option<Value> {
    let ours = json!({ "type": PLUGIN, "capabilities": { POD_ANNOTATIONS: true } });
    let mut changed = config.clone();
    let plugins = changed["plugins"].as_array_mut()?;
    plugins.retain(|plugin| plugin["type"] != PLUGIN);
    plugins.push(ours);
    (changed != *config).then_some(changed)
}

fn without_plugin(config: &Value) -> Option<Value> {
    let mut changed = config.clone();
    changed["plugins"].as_array_mut()?.retain(|plugin| plugin["type"] != PLUGIN);
    (changed != *config).then_some(changed)
}

/// Nobody sees half of the file, nor a program that is being written.
fn replace(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".mesh-tmp");
    let temporary = file.with_file_name(name);
    fs::write(&temporary, bytes)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_plugin_is_last_as_long_as_it_is_wanted() {
        let (bin, conf) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let before = json!({"cniVersion": "0.4.0", "name": "n", "plugins": [{"type": "ptp"}]});
        let file = conf.path().join("10-ptp.conflist");
        fs::write(&file, before.to_string()).unwrap();
        fs::write(conf.path().join("20-other.conflist"), "{}").unwrap();
        fs::write(conf.path().join("00-readme.txt"), "not this").unwrap();
        let read = || -> Value { serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap() };
        let args =
            InstallArgs { bin_dir: bin.path().into(), conf_dir: conf.path().into(), remove: false, check: false };
        let start = |remove: bool| {
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let args = InstallArgs { remove, ..args.clone() };
            (stop, tokio::spawn(async move { install(&args, async { drop(stopped.await) }).await }))
        };
        assert!(check(&args).unwrap_err().to_string().contains("not in"));
        let (stop, installing) = start(false);
        let installed = async |why: &str| {
            for _ in 0..500 {
                if read()["plugins"][1]["type"] == PLUGIN {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{why}: {}", read());
        };
        installed("at first").await;
        assert_eq!(read()["plugins"][1]["capabilities"][POD_ANNOTATIONS], true);
        assert_eq!(fs::metadata(bin.path().join(PLUGIN)).unwrap().permissions().mode() & 0o777, 0o755);
        // The node's network is installed anew.
        fs::write(&file, before.to_string()).unwrap();
        installed("again").await;
        check(&args).unwrap();
        // It ends, and pods are started before another one runs.
        stop.send(()).unwrap();
        installing.await.unwrap().unwrap();
        check(&args).unwrap();
        let removing = InstallArgs { remove: true, ..args.clone() };
        assert!(check(&removing).unwrap_err().to_string().contains("still in"));
        let (stop, installing) = start(true);
        while read() != before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        check(&removing).unwrap();
        stop.send(()).unwrap();
        installing.await.unwrap().unwrap();
        assert_eq!(fs::read_dir(conf.path()).unwrap().count(), 3, "a temporary file was left");
    }

    #[test]
    fn what_cannot_be_changed_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let args =
            InstallArgs { bin_dir: folder.path().into(), conf_dir: folder.path().into(), remove: false, check: false };
        let error = || format!("{:#}", change(&args).unwrap_err());
        assert!(error().contains("no network configuration"), "{}", error());
        fs::write(folder.path().join("10-a.conf"), r#"{"type": "bridge"}"#).unwrap();
        assert!(error().contains("single plugin"), "{}", error());
        fs::write(folder.path().join("00-a.conflist"), "{").unwrap();
        assert!(error().contains("no JSON"), "{}", error());
    }
}
