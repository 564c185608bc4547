"""The tutorial's texts in both languages, and its code; `notebooks.py` makes notebooks of it.

It is one file, long as it is, so that whoever changes a cell has all words about it before them.
"""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    """The same words in English and in Brazilian Portuguese."""

    en: str
    pt: str


Cell = Text | str
"""A cell with words, or with code."""


class Part(NamedTuple):
    """One notebook."""

    name: Text
    """Of its file, without the ending."""
    cells: list[Cell]


TRAINING = Part(
    Text("1-public-training", "1-treinamento-publico"),
    [
        Text(
            """
# 1 Public training

In three steps you will serve private predictions: nobody who runs the servers learns the image,
the answer or the model.

1. **Train a model with Keras** (this notebook). Nothing here is private, and nothing is new.
2. **Serve it securely**: split its weights into shares, and give each server one share.
3. **Ask it privately**: split each image in the same way.

The steps are those of the tutorial *Secure Classification with Syft Keras and TFE* by Jason
Mancuso, Yann Dupis and Morten Dahl (PySyft, part 13), which this one follows with `privserve`.

You need `pip install keras pillow` besides privserve. **In a hurry?** Copy `../digits-model.h5`
to `short-conv-mnist.h5`, which is this network, trained for longer, and go on with notebook 2.
""",
            """
# 1 Treinamento público

Em três passos você vai servir predições privadas: ninguém que opera os servidores fica sabendo
qual é a imagem, a resposta ou o modelo.

1. **Treinar um modelo com Keras** (este notebook). Aqui nada é privado, e nada é novo.
2. **Servi-lo com segurança**: dividir os pesos em partes (*shares*) e dar uma parte a cada
   servidor.
3. **Consultá-lo em privado**: dividir cada imagem da mesma maneira.

Os passos são os do tutorial *Secure Classification with Syft Keras and TFE*, de Jason Mancuso,
Yann Dupis e Morten Dahl (PySyft, parte 13), que este acompanha com `privserve`.

Além do privserve, é preciso `pip install keras pillow`. **Com pressa?** Copie
`../digits-model.h5` para `short-conv-mnist.h5`: é esta mesma rede, treinada por mais tempo.
Depois siga para o notebook 2.
""",
        ),
        """
import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # privserve has brought torch along

import keras
import numpy as np
from keras import Sequential
from keras.layers import Activation, AveragePooling2D, Conv2D, Dense, Flatten, Input
""",
        Text(
            """
## The digits

MNIST, 70,000 handwritten digits. `DIGITS = None` has Keras fetch them from
`storage.googleapis.com` (11 MB, once). Without a network, name a file that you have: MNIST as
Keras keeps it (`mnist.npz`), or any `.npz` with the arrays `x_train`, `y_train`, `x_test` and
`y_test`.
""",
            """
## Os dígitos

MNIST, 70.000 dígitos escritos à mão. Com `DIGITS = None`, o Keras os baixa de
`storage.googleapis.com` (11 MB, uma vez só). Sem rede, indique um arquivo que você já tenha: o
MNIST como o Keras o guarda (`mnist.npz`), ou qualquer `.npz` com os arrays `x_train`, `y_train`,
`x_test` e `y_test`.
""",
        ),
        """
DIGITS = None
EPOCHS = 2
""",
        """
def load_digits(path):
    names = ["x_train", "y_train", "x_test", "y_test"]
    if path is not None:
        with np.load(path, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:
        raise RuntimeError(
            "MNIST could not be fetched from storage.googleapis.com, which needs a network; "
            "set DIGITS to an mnist.npz that you have, or use ../digits-model.h5 as it is"
        ) from error
    return [x_train, y_train, x_test, y_test]


x_train, y_train, x_test, y_test = load_digits(DIGITS)
x_train = x_train.reshape(-1, 28, 28, 1).astype("float32") / 255
x_test = x_test.reshape(-1, 28, 28, 1).astype("float32") / 255
y_train = keras.utils.to_categorical(y_train, 10)
y_test = keras.utils.to_categorical(y_test, 10)
print(len(x_train), "digits to train on,", len(x_test), "to test with")
""",
        Text("## The network", "## A rede"),
        """
model = Sequential(
    [
        Input((28, 28, 1)),
        Conv2D(10, (3, 3)),
        AveragePooling2D((2, 2)),
        Activation("relu"),
        Conv2D(32, (3, 3)),
        AveragePooling2D((2, 2)),
        Activation("relu"),
        Conv2D(64, (3, 3)),
        AveragePooling2D((2, 2)),
        Activation("relu"),
        Flatten(),
        Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
model.fit(
    x_train, y_train, batch_size=128, epochs=EPOCHS, verbose=2, validation_data=(x_test, y_test)
)
loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
print(f"right on {accuracy:.2%} of the test digits")
""",
        Text(
            "## Save it\n\nNotebook 2 loads these weights.",
            "## Salvar\n\nO notebook 2 carrega estes pesos.",
        ),
        """
model.save("short-conv-mnist.h5")
""",
    ],
)

SERVING = Part(
    Text("2-serving-the-model-securely", "2-servindo-o-modelo-com-seguranca"),
    [
        Text(
            """
# 2 Serving the model securely

Three *parties* do the work. **alice** and **bob** compute: each holds one share of every weight
and of every image. **carol** deals: she hands the other two random numbers and sees no share at
all. A share by itself is a random number; only both together are the secret. Nobody learns
anything as long as no two of the three put together what they have.

`KerasHook` gives Keras' models three methods: `share`, `serve` and `stop`.
""",
            """
# 2 Servindo o modelo com segurança

Três *participantes* fazem o trabalho. **alice** e **bob** calculam: cada um guarda uma parte
(*share*) de cada peso e de cada imagem. **carol** distribui: ela entrega números aleatórios aos
outros dois e não vê parte nenhuma. Uma parte sozinha é um número aleatório; só as duas juntas são
o segredo. Ninguém descobre nada, contanto que dois dos três não juntem o que têm.

`KerasHook` dá aos modelos do Keras três métodos: `share`, `serve` e `stop`.
""",
        ),
        """
import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
from keras import Sequential
from keras.layers import Activation, AveragePooling2D, Conv2D, Dense, Flatten, Input

import privserve as ps

hook = ps.KerasHook(keras)
""",
        Text(
            """
## The model

The network of notebook 1, with two differences. The shape of a query is fixed ahead: Keras 3
calls it `batch_shape`, and Keras 2 had `batch_input_shape` in the first layer. And the last layer
gives logits: the largest one is the digit, with or without a softmax.
""",
            """
## O modelo

A rede do notebook 1, com duas diferenças. O formato de uma consulta é fixado de antemão: o Keras
3 o chama de `batch_shape`, e no Keras 2 era `batch_input_shape`, na primeira camada. E a última
camada dá logits: o maior deles é o dígito, com ou sem softmax.
""",
        ),
        """
model = Sequential(
    [
        Input(batch_shape=(1, 28, 28, 1)),
        Conv2D(10, (3, 3)),
        AveragePooling2D((2, 2)),
        Activation("relu"),
        Conv2D(32, (3, 3)),
        AveragePooling2D((2, 2)),
        Activation("relu"),
        Conv2D(64, (3, 3)),
        AveragePooling2D((2, 2)),
        Activation("relu"),
        Flatten(),
        Dense(10, name="logit"),
    ]
)
model.load_weights("short-conv-mnist.h5")
""",
        Text(
            """
## The parties

With `AUTO = True` this notebook starts the three parties as processes of this machine. With `AUTO
= False` it prints a command for each, and `start` returns when all three answer: run the commands
in three terminals, or on three machines, as three organisations would.

The cluster's files are in the folder `cluster`: addresses, certificates and keys. `owner.key` is
yours alone; a client needs `cluster.toml`, `ca.pem` and `client.key`.
""",
            """
## Os participantes

Com `AUTO = True`, este notebook inicia os três participantes como processos desta máquina. Com
`AUTO = False`, ele imprime um comando para cada um, e a célula só termina quando os três
respondem: execute os comandos em três terminais, ou em três máquinas, como fariam três
organizações.

Os arquivos do cluster ficam na pasta `cluster`: endereços, certificados e chaves. `owner.key` é
só sua; um cliente precisa de `cluster.toml`, `ca.pem` e `client.key`.
""",
        ),
        """
AUTO = True

alice = ps.Worker(host="localhost:4000", auto_managed=AUTO)
bob = ps.Worker(host="localhost:4001", auto_managed=AUTO)
carol = ps.Worker(host="localhost:4002", auto_managed=AUTO)

cluster = ps.Cluster(alice, bob, carol, directory="cluster")
""",
        """
cluster.start()
""",
        Text(
            """
## Share and serve

`share` splits every weight here, in this notebook, and sends alice one share and bob the other.
It also says how far the answers may be off. `serve` blocks until three images are answered:
**leave it running and open notebook 3**.
""",
            """
## Compartilhar e servir

`share` divide cada peso aqui mesmo, neste notebook, e envia uma parte a alice e a outra a bob.
Também diz o quanto as respostas podem se desviar. `serve` espera até que três imagens sejam
respondidas: **deixe-o rodando e abra o notebook 3**.
""",
        ),
        """
model.share(cluster, input_range=(0, 1))
""",
        """
model.serve(num_requests=3)
""",
        Text(
            """
## The end

`stop` has every party forget its share. `cluster.stop` ends the parties that this notebook
started, and names those that it did not (`hook.shutdown_workers()` does both at once).
""",
            """
## O fim

Com `stop`, cada participante esquece a sua parte. `cluster.stop` encerra os participantes que
este notebook iniciou e diz quais ele não iniciou (`hook.shutdown_workers()` faz as duas coisas de
uma vez).
""",
        ),
        """
model.stop()
cluster.stop()
""",
    ],
)

ASKING = Part(
    Text("3-private-prediction-client", "3-cliente-de-predicao-privada"),
    [
        Text(
            """
# 3 Private prediction client

You are somebody else now: you have three handwritten digits, which you show to nobody, and want
to know what the model of notebook 2 makes of them. Needs no Keras. Notebook 2 has to be at
`model.serve(...)`.
""",
            """
# 3 Cliente de predição privada

Agora você é outra pessoa: tem três dígitos escritos à mão, que não mostra a ninguém, e quer saber
o que o modelo do notebook 2 diz deles. Não precisa de Keras. O notebook 2 tem de estar em
`model.serve(...)`.
""",
        ),
        """
import numpy as np
from PIL import Image

import privserve as ps
from privserve import fixedpoint, sharing

with np.load("../digits.npz") as samples:  # 200 digits of MNIST that the model has not seen
    images, labels = samples["images"][:3], samples["labels"][:3]


def picture(values):
    \"\"\"Show numbers from 0 to 1 as grey squares.\"\"\"
    grey = np.rint(255 * np.atleast_2d(np.squeeze(values))).astype(np.uint8)
    height, width = grey.shape
    return Image.fromarray(grey).resize((10 * width, 10 * height), Image.Resampling.NEAREST)
""",
        Text("## What you have", "## O que você tem"),
        """
picture(images[0])
""",
        Text(
            """
## What alice and bob get

`query_model` splits each image before it leaves this process. Here is the same split, done by
hand. Numbers become integers modulo $2^{64}$; alice's share is drawn at random, and bob's is what
is missing from the image. The pictures show the top eight bits of each.
""",
            """
## O que alice e bob recebem

`query_model` divide cada imagem antes que ela saia deste processo. Aqui está a mesma divisão,
feita à mão. Os números viram inteiros módulo $2^{64}$; a parte de alice é sorteada, e a de bob é
o que falta para formar a imagem. As figuras mostram os oito bits mais altos de cada uma.
""",
        ),
        """
BITS = 16
alices, bobs = sharing.split(fixedpoint.encode(images[0], BITS), 2)


def top_bits(share):
    return (share.view(np.uint64) >> np.uint64(56)) / 255


picture(top_bits(alices))
""",
        """
picture(top_bits(bobs))
""",
        Text("Both together are the image again:", "As duas juntas são a imagem outra vez:"),
        """
picture(sharing.join([alices, bobs]) / 2**BITS)
""",
        Text(
            """
## Ask

The client splits the image, sends each of the two its share, gets a share of the answer from
each, and joins them here.
""",
            """
## Perguntar

O cliente divide a imagem, envia a cada um dos dois a sua parte, recebe de cada um uma parte da
resposta e as junta aqui.
""",
        ),
        """
client = ps.Client("cluster/cluster.toml")
answers = []
for image, label in zip(images, labels, strict=True):
    answer = client.query_model(image.reshape(1, 28, 28, 1))
    answers.append(answer)
    predicted = np.argmax(answer)
    verdict = "correctly" if predicted == label else "wrongly"
    print(f"The image had label {label} and was {verdict} classified as {predicted}")
client.close()
""",
        Text(
            """
The joined answer to the first image: ten numbers, one for each digit from 0 to 9, the larger the
lighter.
""",
            """
A resposta já juntada para a primeira imagem: dez números, um para cada dígito de 0 a 9, mais
claro quanto maior.
""",
        ),
        """
first = answers[0]
picture((first - first.min()) / (first.max() - first.min()))
""",
        Text(
            """
Who ran the servers saw neither the image nor the answer nor the model; nor did you see the model.
Notebook 2 has answered three images by now and goes on to its end.
""",
            """
Quem operou os servidores não viu a imagem, nem a resposta, nem o modelo; e você também não viu o
modelo. O notebook 2 já respondeu às três imagens e segue até o fim.
""",
        ),
    ],
)

PARTS = [TRAINING, SERVING, ASKING]
