//! PyTorch's own files, and damage to any file of weights.

use memfit::graph::tensor::DType;
use memfit::machine::train::names::parameters;
use memfit::machine::train::weights::WeightFiles;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::tiny::{self, Tensors};
use crate::weights::{elements, folder, refusal, singles};

/// The CRC of zip files, a bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())
        })
    })
}

/// A zip of stored members.
fn zip(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let local = file.len() as u32;
        let mut record = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for number in [
            crc(data),
            data.len() as u32,
            data.len() as u32,
            name.len() as u32,
        ] {
            record.extend(number.to_le_bytes());
        }
        file.extend(
            b"PK\x03\x04"
                .iter()
                .chain(&record)
                .copied()
                .chain(name.bytes()),
        );
        file.extend(data);
        directory.extend(b"PK\x01\x02\x14\x00".iter().chain(&record));
        directory.extend([0; 10]);
        directory.extend(local.to_le_bytes().into_iter().chain(name.bytes()));
    }
    let (start, count) = (file.len() as u32, members.len() as u16);
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count.to_le_bytes().repeat(2));
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

/// A state dictionary as PyTorch pickles and zips it, each storage preceded by one unused element.
fn torch(tensors: &Tensors) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    let text = |pickle: &mut Vec<u8>, text: &str| {
        pickle.push(b'X');
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.bytes());
    };
    let tuple = |pickle: &mut Vec<u8>, numbers: &[usize]| {
        pickle.push(b'(');
        for n in numbers {
            pickle.push(b'J');
            pickle.extend((*n as u32).to_le_bytes());
        }
        pickle.push(b't');
    };
    let mut members = Vec::new();
    for (i, (name, (shape, values))) in tensors.iter().enumerate() {
        text(&mut pickle, name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend(b"ctorch\nFloatStorage\n");
        text(&mut pickle, &i.to_string());
        text(&mut pickle, "cpu");
        pickle.push(b'J');
        pickle.extend((values.len() as u32 + 1).to_le_bytes());
        pickle.extend(b"tQK\x01");
        tuple(&mut pickle, shape);
        let strides = (1..=shape.len()).map(|i| shape[i..].iter().product());
        tuple(&mut pickle, &strides.collect::<Vec<usize>>());
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        let data = [&[9.0f32][..], values].concat();
        members.push((
            format!("archive/data/{i}"),
            bytemuck::cast_slice(&data).to_vec(),
        ));
    }
    pickle.extend(b"u.");
    members.insert(0, ("archive/data.pkl".to_string(), pickle));
    zip(&members)
}

#[test]
fn pytorch_files_give_the_same_numbers() {
    for family in ["gpt2", "mixtral"] {
        let (folder, model, tensors) = folder(family);
        let files = WeightFiles::open(folder.path(), &model).unwrap();
        let other = TempDir::new().unwrap();
        let path = other.path().join("pytorch_model.bin");
        let bytes = torch(&tensors);
        std::fs::write(&path, &bytes).unwrap();
        let pickled = WeightFiles::open(other.path(), &model).unwrap();
        for parameter in parameters(&model) {
            let read = |files| singles(files, &model, &parameter);
            assert_eq!(read(&files), read(&pickled), "{parameter}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 30]).unwrap();
        refusal(
            WeightFiles::open(other.path(), &model),
            "not a complete zip file",
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_a_file_makes_reading_panic(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        header in any::<bool>(),
        pickle in any::<bool>(),
    ) {
        let folder = TempDir::new().unwrap();
        let model = tiny::model("llama");
        let (name, mut bytes) = match pickle {
            true => ("pytorch_model.bin", torch(&tiny::filled(&model))),
            false => {
                let path = folder.path().join("x.safetensors");
                tiny::write_singles(&path, &tiny::filled(&model));
                let bytes = std::fs::read(&path).unwrap();
                std::fs::remove_file(path).unwrap();
                ("model.safetensors", bytes)
            }
        };
        let reach = if header { bytes.len().min(300) } else { bytes.len() };
        for (at, byte) in changes {
            bytes[at.index(reach)] = byte;
        }
        std::fs::write(folder.path().join(name), bytes).unwrap();
        if let Ok(files) = WeightFiles::open(folder.path(), &model) {
            for parameter in parameters(&model) {
                let mut into = vec![0; 4 * elements(&model, &parameter) as usize];
                let _ = files.read(&parameter, 0, DType::F32, &mut into);
            }
        }
    }
}
