//! Sending bytes away between two uses, to host memory or to disk, and bringing them back in time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Args, Argument, Card, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::op::transfer::{MOVE, Move};
use crate::graph::pace::Pace;
use crate::graph::reach::copy_stream;
use crate::graph::tensor::{Name, Role, Storage, StorageId, TensorId};
use crate::graph::{Node, Phase, Spot, Step, StepSet, Stream};
use crate::spec::job::{Exactness, Place};
use crate::spec::units::Bytes;

/// Offload of activations, parameters, gradients or optimizer state.
pub struct Offload;

/// Activations smaller than this stay: a copy's fixed cost is larger than what they save.
const LEAST: Bytes = Bytes(16 << 10);

impl Technique for Offload {
    fn card(&self) -> Card {
        Card {
            name: "offload",
            aliases: &["cpu_offload"],
            summary: "keeps bytes in host memory or on disk between two uses; may update on the host where the state lives",
            source: "Ren et al. 2021, arXiv:2101.06840 (ZeRO-Offload); Rajbhandari et al. 2021, arXiv:2104.07857 (ZeRO-Infinity)",
            exactness: Exactness::Bitwise,
            site: Site::Gap,
            arguments: &[
                Argument {
                    key: "what",
                    default: "activations",
                    meaning: "activations | parameters | gradients | optimizer",
                },
                Argument {
                    key: "to",
                    default: "host",
                    meaning: "host | disk",
                },
                Argument {
                    key: "update",
                    default: "device",
                    meaning: "host: what needs the state runs there, with what=optimizer",
                },
                Argument {
                    key: "lag",
                    default: "2",
                    meaning: "half layers of those named after which the device waits for a copy out",
                },
                Argument {
                    key: "lead",
                    default: "2",
                    meaning: "half layers of those named before a use at which its copy in is issued",
                },
            ],
        }
    }

    fn describe(&self, args: &Args) -> String {
        let given = |key: &str| args.0.get(key).map_or("", String::as_str);
        let what = match given("what") {
            "" => "activations",
            "optimizer" => "optimizer state",
            other => other,
        };
        let place = match given("to") {
            "disk" => "on disk",
            _ => "in host memory",
        };
        let update = match given("update") {
            "host" => ", and updates on the host",
            _ => "",
        };
        format!("keeps {what} {place} between uses{update}")
    }

    fn gap(&self, set: &mut StepSet, sites: &Pattern, args: &Args) -> Result<()> {
        let card = self.card();
        let what = args.word(
            &card,
            "what",
            &["activations", "parameters", "gradients", "optimizer"],
        )?;
        let disk = args.word(&card, "to", &["host", "disk"])? == "disk";
        let on_host = args.word(&card, "update", &["device", "host"])? == "host";
        if what == "optimizer" || what == "gradients" {
            expect_at_home(set, &format!("offload:what={what}"))?;
        }
        let pace = Pace {
            lag: args.number(&card, "lag", (0, 1 << 20))?,
            lead: args.number(&card, "lead", (0, 1 << 20))?,
            clock: set.clock(|node| sites.matches_node(node)),
        };
        let common = match what {
            "activations" => &mut set.paces.activations,
            _ => &mut set.paces.others,
        };
        *common = Pace {
            lag: common.lag.max(pace.lag),
            lead: common.lead.max(pace.lead),
            clock: 0,
        };
        let place = if disk { Place::Disk } else { Place::Pinned };
        if on_host && what != "optimizer" {
            let why = "only the update moves to the host";
            return Err(Error::value(
                "update of `offload`",
                "host",
                why,
                "use what=optimizer,update=host",
            ));
        }
        match send(set, what, (sites, pace), place, on_host)? {
            true => Ok(()),
            false => {
                let why = format!("holds no {what} to send away");
                Err(Error::value(
                    "site of `offload`",
                    sites.to_string(),
                    why,
                    "name layers such as layers.*, or *",
                ))
            }
        }
    }
}

/// Storages whose copies have one pace.
struct Paced {
    pace: Pace,
    own: HashMap<Name, Pace>,
}

impl Paced {
    fn add(&mut self, storage: &Storage) {
        self.own.insert(storage.name.clone(), self.pace);
    }
}

/// Sends `what` of all matching sites to `place`; true where there was any.
fn send(
    set: &mut StepSet,
    what: &str,
    (sites, pace): (&Pattern, Pace),
    place: Place,
    on_host: bool,
) -> Result<bool> {
    let served = match on_host {
        true => served(set),
        false => BTreeSet::new(),
    };
    let own = std::mem::take(&mut set.paces.own);
    let mut paced = Paced { pace, own };
    let of = |role: Role| move |s: &Storage| s.role == role && sites.matches(&s.name);
    let found = each(set, |step| match what {
        "activations" => send_activations(step, sites, place, &mut paced),
        "gradients" => send_gradients(step, sites, place, &mut paced),
        "parameters" => Ok(rehome(step, of(Role::Parameter), place, &mut paced)),
        _ if on_host => {
            let state = of(Role::OptimizerState);
            let goes = |s: &Storage| state(s) && !served.contains(&s.name);
            update_on_host(step, goes, &mut paced);
            // What is updated on the host need not be pinned.
            let home = match place {
                Place::Disk => place,
                _ => Place::Host,
            };
            Ok(rehome(step, goes, home, &mut paced))
        }
        _ => Ok(rehome(step, of(Role::OptimizerState), place, &mut paced)),
    });
    set.paces.own = paced.own;
    found
}

/// Fails where gradients and moments are on the host already.
///
/// # Errors
/// [`Error::Conflict`] of `one` and LSP-Offload.
pub(super) fn expect_at_home(set: &StepSet, one: &str) -> Result<()> {
    let mut nodes = set.steps.iter().flat_map(|(_, step)| &step.nodes);
    match nodes.any(|n| n.op.name() == "lsp_apply") {
        false => Ok(()),
        true => Err(Error::Conflict {
            one: one.to_string(),
            other: "lsp_offload".to_string(),
            why: "its gradients go to the host by themselves, where its moments lie".to_string(),
            next: "leave one of them out".to_string(),
        }),
    }
}

/// Applies `change` to every step; true where any found something.
fn each(set: &mut StepSet, mut change: impl FnMut(&mut Step) -> Result<bool>) -> Result<bool> {
    let mut found = false;
    for (_, step) in &mut set.steps {
        found |= change(step)?;
    }
    Ok(found)
}

/// Moves the home of shared storages that `goes` picks; fetches and write-backs follow from it.
fn rehome(
    step: &mut Step,
    goes: impl Fn(&Storage) -> bool,
    place: Place,
    paced: &mut Paced,
) -> bool {
    let mut found = false;
    for storage in step.storages.iter_mut().filter(|s| s.shared && goes(s)) {
        storage.place = place;
        paced.add(storage);
        found = true;
    }
    found
}

/// Optimizer states that some step reads and does not change, as GaLore's projectors: they serve nodes on the device.
fn served(set: &StepSet) -> BTreeSet<Name> {
    let mut served = BTreeSet::new();
    for (_, step) in &set.steps {
        let states = |values: fn(&Node) -> &[TensorId]| -> BTreeSet<StorageId> {
            let all = step.nodes.iter().flat_map(values);
            let homes = all.map(|&v| step.tensor(v).storage);
            homes.filter(|&s| step.storage(s).shared).collect()
        };
        let (read, changed) = (states(|n| &n.inputs), states(|n| &n.outputs));
        let only = read.difference(&changed).map(|&s| step.storage(s));
        let only = only.filter(|s| s.role == Role::OptimizerState);
        served.extend(only.map(|s| s.name.clone()));
    }
    served
}

/// Runs on the host what reads states that go there: what makes a gradient smaller first, and what takes its step, stays.
fn update_on_host(step: &mut Step, goes: impl Fn(&Storage) -> bool, paced: &mut Paced) {
    for index in 0..step.nodes.len() {
        let node = &step.nodes[index];
        let reads = |&value: &TensorId| {
            let storage = step.storage_of(value);
            storage.shared && goes(storage)
        };
        if node.phase != Phase::Update || !node.inputs.iter().any(reads) {
            continue;
        }
        for &value in &node.inputs {
            paced.add(step.storage_of(value));
        }
        let fresh: Vec<StorageId> = (node.outputs.iter())
            .map(|&made| step.tensor(made))
            .filter(|made| made.version == 0)
            .map(|made| made.storage)
            .collect();
        step.nodes[index].stream = Stream::HostCompute;
        for storage in fresh {
            step.storages[storage.0 as usize].place = Place::Pinned;
        }
    }
}

/// Sends what the forward pass of matching blocks leaves for later, and brings it back.
///
/// What is sent goes and comes back at its pace, as do its bytes elsewhere.
fn send_activations(
    step: &mut Step,
    sites: &Pattern,
    place: Place,
    paced: &mut Paced,
) -> Result<bool> {
    let mut wanted = BTreeSet::new();
    for node in step.nodes.iter().filter(|n| n.phase.is_later()) {
        wanted.extend(node.inputs.iter().copied());
    }
    let later = |node: &Node| node.phase.is_later();
    let send = |step: &Step, node: &Node, value: TensorId| {
        let storage = step.storage_of(value);
        node.phase == Phase::Forward
            && node.op.name() != MOVE
            && sites.matches_node(node)
            && storage.role == Role::Activation
            && storage.bytes >= LEAST
            && storage.place == Place::Gpu
            && wanted.contains(&value)
    };
    send_away(step, place, (send, later), paced)
}

/// Sends gradients away as soon as they are whole; the update reads them where they are.
fn send_gradients(
    step: &mut Step,
    sites: &Pattern,
    place: Place,
    paced: &mut Paced,
) -> Result<bool> {
    let mut whole: BTreeMap<StorageId, TensorId> = BTreeMap::new();
    for node in step.nodes.iter().filter(|n| n.phase != Phase::Update) {
        for &value in &node.outputs {
            whole.insert(step.tensor(value).storage, value);
        }
    }
    let shared = |s: &Storage| s.role == Role::Gradient && s.shared;
    if step.storages.iter().any(shared) {
        let next = "leave one of them out";
        let (one, other) = ("offload of gradients".to_string(), "accumulate".to_string());
        let why = "micro-batches add to gradients on the device".to_string();
        return Err(Error::Conflict {
            one,
            other,
            why,
            next: next.to_string(),
        });
    }
    let later = |node: &Node| node.phase == Phase::Update && node.op.name() != "square_sum";
    let send = |step: &Step, node: &Node, value: TensorId| {
        let storage = step.storage_of(value);
        node.phase != Phase::Update
            && storage.role == Role::Gradient
            && sites.matches(&storage.name)
            && whole.get(&step.tensor(value).storage) == Some(&value)
    };
    send_away(step, place, (send, later), paced)
}

/// Puts a move to `place` behind each node for each value `send` picks, and lets nodes that are `later` read a copy brought back; true
/// where there was any.
fn send_away(
    step: &mut Step,
    place: Place,
    (send, later): (
        impl Fn(&Step, &Node, TensorId) -> bool,
        impl Fn(&Node) -> bool,
    ),
    paced: &mut Paced,
) -> Result<bool> {
    let mut away = BTreeMap::new();
    for mut node in std::mem::take(&mut step.nodes) {
        if later(&node) {
            for input in 0..node.inputs.len() {
                if let Some(&sent) = away.get(&node.inputs[input]) {
                    away.extend(step.redirect(&mut node, input, sent));
                }
            }
        }
        let sent: Vec<TensorId> = node
            .outputs
            .iter()
            .copied()
            .filter(|&o| send(step, &node, o))
            .collect();
        let (block, phase) = (node.block.clone(), node.phase);
        step.nodes.push(node);
        for value in sent {
            let origin: Name = format!("{}.away", step.storage_of(value).name).into();
            let spot = Spot {
                origin,
                phase,
                block: block.clone(),
                stream: copy_stream(Place::Gpu, place),
            };
            let role = step.storage_of(value).role;
            let node = step.node(Arc::new(Move { into: false }), &[value], spot, role, place)?;
            away.insert(value, node.outputs[0]);
            step.nodes.push(node);
        }
    }
    for &value in away.iter().flat_map(|(value, sent)| [value, sent]) {
        paced.add(step.storage_of(value));
    }
    Ok(!away.is_empty())
}
