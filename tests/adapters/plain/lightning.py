import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        inputs, target = batch
        return cross_entropy(self.net(inputs), target)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=8 * len(loader))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
dataset = TensorDataset(images, torch.tensor(digits.target))
loader = DataLoader(dataset, batch_size=64, shuffle=True)
model = Classifier()
trainer = Trainer(max_epochs=8, accelerator="cpu", logger=False)
trainer.fit(model, loader)
