import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def forward(self, pixel_values, labels):
        logits = self.net(pixel_values)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
dataset = [{"pixel_values": x, "labels": y} for x, y in zip(images, torch.tensor(digits.target), strict=True)]
args = TrainingArguments(
    "trained",
    num_train_epochs=8,
    per_device_train_batch_size=64,
    learning_rate=0.01,
    lr_scheduler_type="cosine",
    report_to="none",
)
model = Classifier()
trainer = Trainer(model, args, train_dataset=dataset)
trainer.train()
